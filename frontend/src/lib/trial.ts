// What a trial's figures say side by side. Differences that the simulator cannot tell are "same".

import type { Simulated, TrialClass } from '../api/trials';
import { count, latencyText, percent } from './format';

const NOISE = 0.05;
const NOISE_S = 0.01;
const NOISE_SHARE = 0.005;

export interface Row {
  figure: string;
  measured: string;
  active: string;
  draft: string;
  /** "better, −57 %", "same", or nothing where one side is missing. */
  difference: string;
  isSame: boolean;
  /** The draft, or the active version, breaks the promise by this figure. */
  activeBroken: boolean;
  draftBroken: boolean;
}

type Pick = (one: Simulated) => number | null;
type Kind = 'share' | 'seconds' | 'count' | 'neutral';

const FIGURES: readonly (readonly [string, Kind, Pick, keyof Simulated])[] = [
  ['Within objectives', 'share', (one) => one.within, 'within'],
  ['TTFT p50', 'seconds', (one) => one.ttft_p50_s, 'ttft_p50_s'],
  ['TTFT p99', 'seconds', (one) => one.ttft_p99_s, 'ttft_p99_s'],
  ['Longest wait', 'seconds', (one) => one.longest_wait_s, 'longest_wait_s'],
  ['Refused', 'count', (one) => one.num_refused, 'num_refused'],
  ['Share of tokens', 'neutral', (one) => one.token_share, 'token_share'],
];

export function rowsOf(one: TrialClass): Row[] {
  return FIGURES.map(([figure, kind, pick, name]) => {
    const before = one.active === null ? null : pick(one.active);
    const after = one.draft === null ? null : pick(one.draft);
    const seen = one.measured === null || !(name in one.measured) ? null : (one.measured as unknown as Record<string, number | null>)[name];
    const difference = differenceOf(kind, before, after, one.draft?.num ?? 0);
    return {
      figure,
      measured: seen === null || seen === undefined ? '' : shown(kind, seen),
      active: shown(kind, before),
      draft: shown(kind, after),
      difference,
      isSame: difference === 'same' || difference === '',
      activeBroken: name === 'within' && isBroken(one.active),
      draftBroken: name === 'within' && isBroken(one.draft),
    };
  });
}

function isBroken(one: Simulated | null): boolean {
  return one !== null && one.within !== null && one.within < one.target;
}

function shown(kind: Kind, value: number | null): string {
  if (value === null) return '–';
  if (kind === 'seconds') return latencyText(value);
  return kind === 'count' ? count(value) : percent(value);
}

function differenceOf(kind: Kind, before: number | null, after: number | null, num: number): string {
  if (before === null || after === null) return '';
  const by = after - before;
  switch (kind) {
    case 'share':
      return Math.abs(by) < NOISE_SHARE ? 'same' : `${by > 0 ? 'better' : 'worse'}, ${points(by)}`;
    case 'neutral':
      return Math.abs(by) < NOISE_SHARE ? 'same' : points(by);
    case 'seconds':
      if (Math.abs(by) < Math.max(NOISE_S, NOISE * Math.max(before, after))) return 'same';
      return `${by < 0 ? 'better' : 'worse'}, ${before > 0 && after < 10 * before ? relative(by / before) : `+${latencyText(by)}`}`;
    case 'count':
      return Math.abs(by) < Math.max(1, NOISE_SHARE * num) ? 'same' : `${by < 0 ? 'better' : 'worse'}, ${signed(by, count(Math.abs(by)))}`;
  }
}

function points(by: number): string {
  return signed(by, `${(Math.abs(by) * 100).toFixed(1)} points`);
}

function relative(share: number): string {
  return signed(share, `${Math.round(Math.abs(share) * 100)} %`);
}

function signed(value: number, text: string): string {
  return `${value < 0 ? '−' : '+'}${text}`;
}

/** Figures that differ, and for each class those that its promise is about. */
export function isKey(row: Row): boolean {
  return !row.isSame || row.figure === 'Within objectives' || row.figure === 'TTFT p99';
}

/** "last 15 min", "last hour", "all". */
export function windowWords(windowS: number | null): string {
  if (windowS === null) return 'all';
  if (windowS === 3600) return 'last hour';
  if (windowS === 86_400) return 'last day';
  return `last ${Math.round(windowS / 60)} min`;
}
