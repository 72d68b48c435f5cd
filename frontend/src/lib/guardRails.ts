// What publishing a draft will do to the work that runs now, as far as the live figures say it.

import type { LiveSnapshot } from '../api/live';
import type { Document } from './document';
import { valueAt } from './document';
import { count, plural } from './format';

export function guardRails(base: Document, draft: Document, snapshot: LiveSnapshot | null): string[] {
  if (snapshot === null) return [];
  return [...yielding(base, draft, snapshot), ...retiring(base, draft, snapshot), ...shrinking(base, draft, snapshot), ...queues(draft, snapshot)];
}

function yielding(base: Document, draft: Document, snapshot: LiveSnapshot): string[] {
  return draft.classes.flatMap((one) => {
    const before = base.classes.find((other) => other.id === one.id);
    const live = snapshot.classes.find((other) => other.id === one.id);
    const turnsOn = before !== undefined && valueAt(before, 'preemption.preemptible') === false && valueAt(one, 'preemption.preemptible') === true;
    if (!turnsOn || live === undefined || live.num_running === 0) return [];
    return [
      `${one.id} has ${plural(live.num_running, 'request')} running now. From the next step on, more urgent classes may park those that have made few tokens.`,
    ];
  });
}

function retiring(base: Document, draft: Document, snapshot: LiveSnapshot): string[] {
  return base.classes.flatMap((one) => {
    const fallback = draft.retired[one.id];
    const live = snapshot.classes.find((other) => other.id === one.id);
    if (fallback === undefined || live === undefined) return [];
    return [`${one.id} ends. Its ${plural(live.waiting.num, 'waiting request')} and all later ones are served as ${fallback}.`];
  });
}

function shrinking(base: Document, draft: Document, snapshot: LiveSnapshot): string[] {
  const before = valueAt(base, 'batch_limit.max_slots');
  const after = valueAt(draft, 'batch_limit.max_slots');
  if (typeof after !== 'number' || before === after) return [];
  const over = snapshot.workers.filter((worker) => worker.num_running > after);
  if (over.length === 0) return [];
  return [`${plural(over.length, 'worker runs', 'workers run')} more than ${count(after)} now. Nothing is stopped: they shrink as requests finish.`];
}

function queues(draft: Document, snapshot: LiveSnapshot): string[] {
  return draft.classes.flatMap((one) => {
    const limit = valueAt(one, 'queue_limit');
    const live = snapshot.classes.find((other) => other.id === one.id);
    if (typeof limit !== 'number' || live === undefined || live.waiting.num <= limit) return [];
    return [`${one.id} has ${count(live.waiting.num)} waiting, more than its limit of ${count(limit)}: new ones are refused until it has drained.`];
  });
}
