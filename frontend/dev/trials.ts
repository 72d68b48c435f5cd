// Made-up trials of drafts on recorded traffic: high gains what normal work gives up.

import type { Simulated, Traffic, Trial, TrialResult } from '../src/api/trials';
import type { Document } from '../src/lib/document';

type Play = '' | 'no-traffic' | 'slow-trial' | 'failed-trial';
let play: Play = '';
const known: Trial[] = [];

export function traffic(): Traffic {
  const nums = play === 'no-traffic' ? [0, 0, 0, 0] : [12_480, 20_000, 20_000, 20_000];
  return {
    windows: [900, 3600, 86_400, null].map((window_s, index) => ({ window_s, num_requests: nums[index] ?? 0 })),
    max_requests: 20_000,
    num_workers: 4,
  };
}

export const trials = {
  play: (name: Play): void => {
    play = name;
  },
  all: (): Trial[] => [...known].reverse(),
  start: (body: Record<string, unknown>, base: { version: number }): Trial => {
    const made: Trial = {
      id: known.length + 1,
      author: 'ines',
      base_version: base.version,
      window_s: body.window_s as number | null,
      state: 'queued',
      created_at: new Date().toISOString(),
      finished_at: null,
      num_done: 0,
      num_total: 0,
      problem: '',
      document: body.document as Document,
      result: null,
    };
    known.push(made);
    return made;
  },
  read: (id: number): Trial => advance(at(id)),
  cancel: (id: number): Trial => Object.assign(at(id), { state: 'cancelled', problem: 'Cancelled by ines.' }),
};

function at(id: number): Trial {
  return known[id - 1]!;
}

/** One reading further: a quarter of the work, or the end. */
function advance(one: Trial): Trial {
  if (one.state !== 'queued' && one.state !== 'running') return one;
  one.state = 'running';
  one.num_total = 24_960;
  one.num_done = Math.min(one.num_done + 12_480, play === 'slow-trial' ? 12_480 : 24_960);
  if (one.num_done < one.num_total) return one;
  one.finished_at = new Date().toISOString();
  if (play === 'failed-trial') return Object.assign(one, { state: 'failed', problem: 'It took longer than 5 min. Choose a shorter window.' });
  return Object.assign(one, { state: 'done', result: result() });
}

function result(): TrialResult {
  const now = Date.now() / 1000;
  return {
    from_at: now - 905,
    to_at: now - 5,
    num_requests: 12_480,
    num_refused: 212,
    num_guessed: 240,
    num_cached: 3_120,
    is_cut: false,
    num_workers: 4,
    num_slots: 256,
    num_kv_tokens: 1_048_576,
    took_s: 21,
    classes: [
      side('high', 0.8, 0.04, 0.99, [4200, 0, 0.924, 0.31, 1.71, 0.41, 1.4], [4200, 0, 0.993, 0.26, 0.742, 0.43, 0.6]),
      side('medium', 3, 0.06, 0.95, [5100, 0, 0.982, 0.9, 2.58, 0.46, 2.4], [5100, 31, 0.956, 1.1, 2.91, 0.44, 2.8]),
      side('low', 30, 0.12, 0.95, [3180, 212, 0.991, 6.1, 21.2, 0.13, 20.9], [3180, 214, 0.989, 6.2, 21.6, 0.13, 21.3]),
    ],
    verdict: {
      headline: 'high would keep its promise: 99.3 % within 800 ms and 40 ms a token, instead of 92.4 %; medium would still keep its promise: 95.6 % within 3 s and 60 ms a token, instead of 98.2 %; and 1 more below.',
      effects: [
        { kind: 'better', class_id: 'high', text: 'high would keep its promise: 99.3 % within 800 ms and 40 ms a token, instead of 92.4 %' },
        { kind: 'worse', class_id: 'medium', text: 'medium would still keep its promise: 95.6 % within 3 s and 60 ms a token, instead of 98.2 %' },
        { kind: 'worse', class_id: 'medium', text: 'medium would have 31 more refused: 31 of 5,100 instead of 0' },
        { kind: 'same', class_id: 'low', text: 'low would hardly notice and keep its promise: 98.9 % within 30 s and 120 ms a token' },
      ],
    },
  };
}

type Figures = [number, number, number, number, number, number, number];

function side(class_id: string, ttft: number, tpot: number, target: number, active: Figures, draft: Figures) {
  const simulated = ([num, num_refused, within, ttft_p50_s, ttft_p99_s, token_share, longest_wait_s]: Figures): Simulated => ({
    num, num_refused, within, ttft_p50_s, ttft_p99_s, token_share, longest_wait_s, target, ttft_objective_s: ttft, tpot_objective_s: tpot,
  });
  const { num, num_refused, within, ttft_p50_s, ttft_p99_s } = simulated(active);
  const measured = { num, num_refused, within, ttft_p50_s: (ttft_p50_s ?? 0) * 1.05, ttft_p99_s: (ttft_p99_s ?? 0) * 1.06 };
  return { class_id, measured, active: simulated(active), draft: simulated(draft) };
}
