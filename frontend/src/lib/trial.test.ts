import { describe, expect, it } from 'vitest';
import type { Simulated, TrialClass } from '../api/trials';
import { isKey, rowsOf, windowWords } from './trial';

const kept: Simulated = {
  num: 1000, num_refused: 0, within: 0.995, target: 0.99, ttft_objective_s: 0.8, tpot_objective_s: 0.04,
  ttft_p50_s: 0.2, ttft_p99_s: 1.71, token_share: 0.6, longest_wait_s: 2,
};

function high(active: Partial<Simulated>, draft: Partial<Simulated>): TrialClass {
  const measured = { num: 1000, num_refused: 0, within: 0.99, ttft_p50_s: 0.21, ttft_p99_s: 1.8 };
  return { class_id: 'high', measured, active: { ...kept, ...active }, draft: { ...kept, ...draft } };
}

function row(one: TrialClass, figure: string) {
  return rowsOf(one).find((found) => found.figure === figure);
}

describe('a trial beside the active version', () => {
  it('calls a shorter wait better, in percent', () => {
    expect(row(high({}, { ttft_p99_s: 0.742 }), 'TTFT p99')).toMatchObject({ active: '1.71 s', draft: '742 ms', difference: 'better, −57 %' });
  });

  it('tells a wait that grows beyond all percent in seconds', () => {
    expect(row(high({ longest_wait_s: 0 }, { longest_wait_s: 4 }), 'Longest wait')?.difference).toBe('worse, +4.00 s');
  });

  it('calls a larger share within objectives better, in points', () => {
    expect(row(high({ within: 0.924 }, { within: 0.993 }), 'Within objectives')).toMatchObject({ difference: 'better, +6.9 points', activeBroken: true, draftBroken: false });
  });

  it('judges no share of tokens', () => {
    expect(row(high({}, { token_share: 0.5 }), 'Share of tokens')?.difference).toBe('−10.0 points');
  });

  it('keeps what it cannot tell apart out of sight', () => {
    const rows = rowsOf(high({}, { ttft_p50_s: 0.205 }));
    expect(rows.filter(isKey).map((one) => one.figure)).toEqual(['Within objectives', 'TTFT p99']);
  });

  it('says nothing of a side that is missing', () => {
    expect(row({ ...high({}, {}), draft: null }, 'Refused')).toMatchObject({ active: '0', draft: '–', difference: '' });
  });

  it('names windows in words', () => {
    expect([900, 3600, 86_400, null].map(windowWords)).toEqual(['last 15 min', 'last hour', 'last day', 'all']);
  });
});
