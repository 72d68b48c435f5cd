import { describe, expect, it } from 'vitest';
import type { Measured, Simulated, Traffic, Trial, TrialClass, TrialResult } from '../api/trials';
import { isKey, progressWords, rowsOf, trafficBlocks, trustWords, windowOf, windowWords } from './trial';

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

const traffic: Traffic = {
  windows: [900, 3600, 86_400, null].map((window_s, index) => ({ window_s, num_requests: [0, 12, 40, 40][index] ?? 0 })),
  max_requests: 20_000,
  num_workers: 1,
};

function aTrial(changes: Partial<Trial> = {}): Trial {
  return {
    id: 7, author: 'ines', base_version: 41, window_s: 86_400, state: 'running', created_at: '2026-11-24T03:00:00Z', finished_at: null,
    num_done: 0, num_total: 0, problem: '', document: { classes: [], default_class: 'high', retired: {} }, result: null, ...changes,
  };
}

describe('the window of a trial', () => {
  it('is the shortest that holds a request', () => {
    expect(windowOf(traffic, null, null)).toBe('last hour');
  });

  it('is after a reload that of the trial at hand', () => {
    expect(windowOf(traffic, null, aTrial())).toBe('last day');
  });

  it('is the one that the operator chose', () => {
    expect(windowOf(traffic, 'all', aTrial())).toBe('all');
  });
});

describe('a trial under way', () => {
  it('waits for other trials, not for a process', () => {
    expect(progressWords(aTrial({ state: 'queued' }))).toBe('Waiting for its turn: one trial runs at a time.');
  });

  it('says how far both runs together are', () => {
    expect(progressWords(aTrial({ num_done: 12, num_total: 48 }))).toBe('Replayed under v41, then under the draft: 25 %');
  });
});

describe('what keeps a trial from beginning', () => {
  it('is nothing while there is traffic and a worker', () => {
    expect(trafficBlocks(traffic, 12)).toBeNull();
  });

  it('says that traffic is looked for again', () => {
    expect(trafficBlocks(traffic, 0)).toContain('It is looked for again every 15 s.');
  });

  it('is a fleet without a worker', () => {
    expect(trafficBlocks({ ...traffic, num_workers: 0 }, 12)).toContain('No live worker');
  });
});

const BEFORE = '2026-11-24T02:00:00Z';
const FROM = Date.UTC(2026, 10, 24, 3) / 1000;

function resultOf(...classes: TrialClass[]): TrialResult {
  return {
    from_at: FROM, to_at: FROM + 900, num_requests: 1000, num_refused: 0, num_guessed: 0, num_cached: 0, is_cut: false,
    num_workers: 1, num_slots: 8, num_kv_tokens: 16_000, took_s: 2, classes, verdict: { headline: '', effects: [] },
  };
}

function seen(class_id: string, measured: Partial<Measured>, simulated: Partial<Simulated> = {}): TrialClass {
  const one = high(simulated, simulated);
  return { ...one, class_id, measured: { num: 1000, num_refused: 0, within: 0.99, ttft_p50_s: 0.2, ttft_p99_s: 1.7, ...measured } };
}

describe('how sure a trial is', () => {
  it('shows every class beside what was measured, and how far off the farthest is', () => {
    const words = trustWords(resultOf(seen('high', { ttft_p50_s: 0.22 }), seen('low', { ttft_p50_s: 0.2 })), 41, BEFORE);
    expect(words).toEqual(['TTFT p50 of v41, simulated: high 200 ms, measured 220 ms; low 200 ms, measured 200 ms. Off by 10 % at most.']);
  });

  it('tells figures that are far off to be read for their direction only', () => {
    const [words] = trustWords(resultOf(seen('high', { ttft_p50_s: 0.3 }), seen('low', {})), 41, BEFORE);
    expect(words).toContain('Off by up to 50 %: trust which way a figure goes, not how far.');
  });

  it('is as far off where everything took much longer than was simulated', () => {
    const [words] = trustWords(resultOf(seen('high', { ttft_p50_s: 3 })), 41, BEFORE);
    expect(words).toContain('Off by up to a factor of 15:');
  });

  it('says that another version served a part of it', () => {
    const words = trustWords(resultOf(seen('high', {})), 41, '2026-11-24T03:05:00Z');
    expect(words[1]).toBe('Part of it was measured before v41 was active.');
  });

  it('says what one request weighs where few were let in', () => {
    const words = trustWords(resultOf(seen('high', {}, { num: 12, num_refused: 4 }), seen('low', {})), 41, BEFORE);
    expect(words[1]).toBe('Few were let in: one request is 12.5 points of high.');
  });
});
