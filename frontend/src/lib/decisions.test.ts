import { describe, expect, it } from 'vitest';
import type { Decision } from '../api/live';
import { filtered, inSentence, likeWords } from './decisions';

const decision = (at: number, kind: string, reason = ''): Decision => ({ at, kind, reason, class_id: 'high', request_id: 'a', text: '', num_like: 0 });
const ALL = [decision(1, 'preempted'), decision(3, 'rejected', 'queue_full'), decision(2, 'batch_limit_changed'), decision(4, 'not_preempted')];

describe('the feed', () => {
  it('shows the newest first', () => {
    expect(filtered(ALL, 'all').map((one) => one.at)).toEqual([4, 3, 2, 1]);
  });

  it.each([
    ['preemptions', [4, 1]],
    ['batch_limit', [2]],
    ['refusals', [3]],
  ] as const)('filters %s', (filter, times) => {
    expect(filtered(ALL, filter).map((one) => one.at)).toEqual(times);
  });

  it('folds what is alike', () => {
    expect([likeWords(0), likeWords(38)]).toEqual(['', '38 like it in the last minute']);
  });

  it('joins a sentence to its request without touching abbreviations', () => {
    expect([inSentence('Resumed after 6.2 s.'), inSentence('TTFT passed.')]).toEqual(['resumed after 6.2 s.', 'TTFT passed.']);
  });
});
