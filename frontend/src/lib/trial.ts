// What a trial's figures say side by side. Differences that the simulator cannot tell are "same".

import type { Simulated, Traffic, Trial, TrialClass, TrialResult } from '../api/trials';
import { count, latencyText, list, percent, plural, significant } from './format';
import { parseInstant } from './time';

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

/** The window shown: the one chosen, else that of the trial at hand, else the shortest that holds a request. */
export function windowOf(traffic: Traffic | null, chosen: string | null, trial: Trial | null): string {
  if (chosen !== null) return chosen;
  if (trial !== null) return windowWords(trial.window_s);
  const windows = traffic?.windows ?? [];
  const first = windows.find((one) => one.num_requests > 0) ?? windows[windows.length - 1];
  return windowWords(first?.window_s ?? null);
}

/** How far a trial under way is. */
export function progressWords(trial: Trial): string {
  if (trial.num_total > 0) return `Replayed under v${trial.base_version}, then under the draft: ${Math.floor((trial.num_done / trial.num_total) * 100)} %`;
  return trial.state === 'queued' ? 'Waiting for its turn: one trial runs at a time.' : 'Reading the recorded traffic.';
}

const CLOSE = 1.25;
const FEW = 100;

/** How sure the figures are: how close the simulator came to what was measured, and how much one request weighs. */
export function trustWords(result: TrialResult, baseVersion: number, basePublishedAt: string): string[] {
  const close = closeness(result, baseVersion);
  const isMixed = close !== '' && parseInstant(basePublishedAt) > result.from_at;
  const mixed = isMixed ? `Part of it was measured before v${baseVersion} was active.` : '';
  return [close, mixed, coarseness(result)].filter((words) => words !== '');
}

/** The active version simulated, beside what gateways measured of the same requests. */
function closeness(result: TrialResult, baseVersion: number): string {
  const pairs = result.classes.flatMap((one) => {
    const simulated = one.active?.ttft_p50_s ?? null;
    const measured = one.measured?.ttft_p50_s ?? null;
    return simulated === null || measured === null ? [] : [{ id: one.class_id, simulated, measured }];
  });
  if (pairs.length === 0) return '';
  const sides = pairs.map(({ id, simulated, measured }) => `${id} ${latencyText(simulated)}, measured ${latencyText(measured)}`);
  const times = Math.max(...pairs.map(({ simulated, measured }) => timesOff(simulated, measured)));
  const off = times < 2 ? `${Math.round((times - 1) * 100)} %` : `a factor of ${significant(times, 2)}`;
  const judged = times > CLOSE ? `Off by up to ${off}: trust which way a figure goes, not how far.` : `Off by ${off} at most.`;
  return `TTFT p50 of v${baseVersion}, simulated: ${sides.join('; ')}. ${judged}`;
}

/** By which factor two latencies differ, whichever is longer; 1 where nobody could tell them apart. */
function timesOff(one: number, other: number): number {
  if (Math.abs(one - other) < NOISE_S) return 1;
  return Math.max(one, other) / Math.max(NOISE_S, Math.min(one, other));
}

/** Where few were let in, one request more or less in time moves the share by points. */
function coarseness(result: TrialResult): string {
  const few = result.classes.flatMap((one) => {
    const nums = [one.active, one.draft].flatMap((side) => (side === null ? [] : [side.num - side.num_refused])).filter((num) => num > 0);
    const least = Math.min(...nums);
    return nums.length === 0 || least >= FEW ? [] : [`${(100 / least).toFixed(1)} points of ${one.class_id}`];
  });
  return few.length === 0 ? '' : `Few were let in: one request is ${list(few)}.`;
}

/** Why a trial cannot begin with the traffic there is; null when it can. */
export function trafficBlocks(traffic: Traffic | null, num: number): string | null {
  if (traffic === null) return 'Looking for recorded traffic.';
  if (num === 0) return 'There is no traffic in this window to try it on. It is looked for again every 15 s.';
  if (traffic.num_workers === 0) return 'No live worker has told how long its steps take; there is nothing to replay it on.';
  return null;
}

export function trafficWords(traffic: Traffic, num: number): string {
  if (num >= traffic.max_requests) return `the newest ${count(traffic.max_requests)} requests`;
  return num === 0 ? 'no request recorded' : `${plural(num, 'request')}, refused ones too`;
}
