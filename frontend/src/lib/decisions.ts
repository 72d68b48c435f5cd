// The feed of decisions and its filters.

import type { Decision } from '../api/live';
import { count } from './format';

export const FILTERS = [
  ['all', 'All'],
  ['preemptions', 'Preemptions'],
  ['batch_limit', 'Batch limit'],
  ['refusals', 'Refusals'],
] as const;

export type Filter = (typeof FILTERS)[number][0];

const PATTERNS: Record<Exclude<Filter, 'all'>, RegExp> = {
  preemptions: /preempt|park|resum/i,
  batch_limit: /batch.?limit/i,
  refusals: /reject|refus/i,
};

/** The decisions a filter lets through, newest first. Judged by the event's kind and reason code, never by its words. */
export function filtered(decisions: readonly Decision[], filter: Filter): Decision[] {
  const newestFirst = [...decisions].sort((a, b) => b.at - a.at);
  if (filter === 'all') return newestFirst;
  const pattern = PATTERNS[filter];
  return newestFirst.filter((one) => pattern.test(one.kind) || pattern.test(one.reason));
}

export function likeWords(numLike: number): string {
  return numLike === 0 ? '' : `${count(numLike)} like it in the last minute`;
}

/** Enough of an id to tell requests apart on a page, as the sentences write it. */
export function shortId(id: string): string {
  return id.slice(0, 4);
}

/** Text that continues a sentence: a small letter first, but never in an abbreviation. */
export function inSentence(text: string): string {
  return /^[A-Z][a-z]/.test(text) ? `${text.charAt(0).toLowerCase()}${text.slice(1)}` : text;
}
