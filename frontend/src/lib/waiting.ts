// Who waits, in words: the server says why; here are the figures beside it.

import type { ClassLive, LiveSnapshot, TenantWaiting } from '../api/live';
import { count, plural, wholePercent } from './format';
import { age } from './time';

const AT_ONCE = new Set(['claimed', 'not_claimed']);

/** The classes with somebody to tell of, the most urgent first. */
export function waitingClasses(snapshot: LiveSnapshot): ClassLive[] {
  return snapshot.classes.filter((one) => one.waiting.num > 0);
}

export function whyAnchor(classId: string): string {
  return `waits-${classId}`;
}

/** "est. 3.1 s": when its oldest request would start, from now. */
export function predictedStart(one: TenantWaiting): string {
  if (one.num === 0) return '';
  if (AT_ONCE.has(one.reason)) return 'with a next step';
  return one.predicted_start_s === null ? 'not known' : `est. in ${age(one.predicted_start_s)}`;
}

/** "61 %, due 50 %" */
export function tokenShare(one: TenantWaiting): string {
  if (one.share_got === null) return 'none yet';
  const due = one.share_due === null ? '' : `, due ${wholePercent(one.share_due)}`;
  return `${wholePercent(one.share_got)}${due}`;
}

/** "33 more of 11 other tenants" */
export function moreWords(one: ClassLive): string {
  const { num_more: num, num_more_tenants: tenants } = one.waiting;
  if (num === 0) return '';
  return tenants === 0 ? `${count(num)} more` : `${count(num)} more of ${plural(tenants, 'other tenant')}`;
}

/** Why free slots stay free: what the one that has waited longest lacks, of the most urgent class that waits. */
export function whyNotStarted(snapshot: LiveSnapshot): string {
  const [one] = waitingClasses(snapshot);
  const why = one?.waiting.tenants[0]?.why[0];
  if (one === undefined || why === undefined) return '';
  return snapshot.num_waiting === one.waiting.num ? why : `${one.id}: ${why.charAt(0).toLowerCase()}${why.slice(1)}`;
}
