// Made-up numbers for the mock backend: a night on which `high` breaks its promise, and its calm variants.

import type { Cell, ClassLive, Decision, LiveSnapshot, Percentiles, Point, TenantWaiting, WaitingView, WorkerLive } from '../src/api/live';

type Scenario = 'broken' | 'calm' | 'silent' | 'empty' | 'no-worker' | 'no-cause' | 'gap' | 'wordy' | 'changed';
let scenario: Scenario = 'broken';
let silentSince = 0;
let number = 0;

const drained = new Set<string>();

export function orderDrain(worker: string, drains: boolean): void {
  if (drains) drained.add(worker);
  else drained.delete(worker);
}

export function setScenario(name: string): void {
  scenario = name as Scenario;
  silentSince = Date.now() / 1000;
}

let seed = 42;
function random(): number {
  seed = (seed * 1664525 + 1013904223) >>> 0;
  return seed / 4294967296;
}

const BROKEN_FOR_S = 260;
const begunAt = Date.now() / 1000 - BROKEN_FOR_S;

interface Shape {
  id: string;
  rank: number;
  weight: number;
  ttft: [number, number];
  tpot: [number, number];
  target: number;
  wait: number;
  tokens: number;
  running: number[];
  parked: number;
  waits: number[];
}

const SHAPES: Shape[] = [
  { id: 'high', rank: 0, weight: 60, ttft: [0.8, 0.56], tpot: [0.04, 0.034], target: 0.99, wait: 2, tokens: 3010, running: [19, 22, 18, 20], parked: 0, waits: [1.4, 1.15, 0.9, 0.58, 0.44, 0.31, 0.2, 0.12, 0.05] },
  { id: 'medium', rank: 1, weight: 30, ttft: [3, 1.6], tpot: [0.06, 0.044], target: 0.95, wait: 15, tokens: 3146, running: [22, 24, 21, 23], parked: 3, waits: [2.9, 2.6, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.3, 1.1, 0.9, 0.8, 0.6, 0.4, 0.3, 0.1] },
  { id: 'low', rank: 2, weight: 10, ttft: [30, 14], tpot: [0.12, 0.078], target: 0.95, wait: 60, tokens: 684, running: [6, 6, 5, 6], parked: 11, waits: Array.from({ length: 58 }, (_, index) => 26 - index * 0.44) },
];

function spread(governing: number, jitter: number): Percentiles {
  const noise = 1 + (random() - 0.5) * jitter;
  return { p50: governing * 0.42 * noise, p95: governing * 0.75 * noise, p99: governing * noise, num: 120 };
}

/** `wordy` is a broken promise about which everything has the most to say. */
function hasBroken(): boolean {
  return scenario === 'broken' || scenario === 'no-cause' || scenario === 'wordy' || scenario === 'changed';
}

function breach(at: number): number {
  if (!hasBroken()) return 1;
  return at < begunAt ? 1 : 1 + 2.3 * (1 - Math.exp(-(at - begunAt) / 80));
}

function point(at: number): Point {
  const byClass = <T>(make: (shape: Shape) => T): Record<string, T> => Object.fromEntries(SHAPES.map((shape) => [shape.id, make(shape)]));
  const slow = breach(at);
  return {
    at,
    ttft: byClass((shape) => spread(shape.ttft[1] * (shape.id === 'high' ? slow : 1 + (slow - 1) * 0.25), 0.15)),
    tpot: byClass((shape) => spread(shape.tpot[1] * (1 + (slow - 1) * 0.05), 0.1)),
    tokens_per_s: byClass((shape) => shape.tokens * (1 + (random() - 0.5) * 0.08)),
    waiting: byClass((shape) => shape.waits.length),
    step_p50_s: 0.022 * (1 + (slow - 1) * 0.08) * (1 + (random() - 0.5) * 0.1),
    step_p99_s: 0.031 * (1 + (slow - 1) * 0.12) * (1 + (random() - 0.5) * 0.14),
    batch_limit: at < begunAt ? 64 : at < begunAt + 30 ? 60 : at < begunAt + 60 ? 56 : 52,
    num_running: at < begunAt ? 60 + random() * 3 : 48 + random() * 3,
    kv_share: Object.fromEntries(WORKERS.map((id) => [id, at < begunAt ? 0.68 : 0.97])),
    busy: Object.fromEntries(WORKERS.map((id) => [id, 0.92 + random() * 0.04])),
  };
}

const WORKERS = ['node1-gpu0', 'node1-gpu1', 'node2-gpu0', 'node2-gpu1'];

export function history(now: number): Point[] {
  if (scenario === 'empty') return [];
  const points = Array.from({ length: 95 }, (_, index) => point(Math.floor(now / 10) * 10 - (94 - index) * 10));
  return scenario === 'gap' ? points.filter((one) => one.at < now - 400 || one.at > now - 250) : points;
}

function classLive(shape: Shape, now: number): ClassLive {
  const isWordy = scenario === 'wordy';
  const isBroken = hasBroken() && (shape.id === 'high' || (isWordy && shape.id === 'medium'));
  const isCalm = !hasBroken();
  const slow = breach(now);
  const waits = isCalm ? shape.waits.filter((_, index) => index % 4 === 3) : shape.waits;
  const late = waits.filter((wait) => wait > shape.ttft[0]).length;
  const isEmpty = scenario === 'empty';
  const none: Percentiles = { p50: null, p95: null, p99: null, num: 0 };
  const attainment = isBroken ? (isWordy ? 0.9905 : 0.912) : shape.rank === 1 ? 0.981 : 0.992;
  const state = { kept: true, broken_since: null, num_late: 3, num_requests: 3604, attainment: 0.996 };
  return {
    id: shape.id,
    rank: shape.rank,
    color: shape.rank,
    weight: shape.weight,
    objective: { ttft_s: shape.ttft[0], tpot_s: shape.tpot[0], target: shape.target, kept_again: shape.target + 0.1 * (1 - shape.target), governing: shape.target > 0.95 ? 'p99' : 'p95', max_wait_s: shape.wait },
    window_s: 300,
    ttft: isEmpty ? none : spread(shape.ttft[1] * (shape.id === 'high' ? slow : 1), 0.01),
    tpot: isEmpty ? none : spread(shape.tpot[1] * 1.14, 0.01),
    ttft_state: isBroken ? { kept: false, broken_since: begunAt, num_late: 317, num_requests: 3604, attainment } : state,
    tpot_state: state,
    attainment: isEmpty ? null : attainment,
    num_judged: isEmpty ? 0 : 3604,
    num_late: isBroken ? 317 : 4,
    num_overdue: isEmpty ? 0 : late,
    judged_since: scenario === 'changed' ? now - 120 : null,
    budget_left: isEmpty ? null : isBroken ? 0.38 : 0.86,
    budget_since: isEmpty ? null : scenario === 'changed' ? now - 120 : now - 30 * 86_400,
    burn_rate: isEmpty ? null : isBroken ? 8.8 : 0.3,
    share_due: shape.weight / 100,
    share_got: isEmpty ? null : [0.44, 0.46, 0.1][shape.rank]!,
    waiting: isEmpty ? NOBODY : { num: waits.length, oldest_s: waits[0] ?? 0, num_late: late, waits_s: waits, ...tenantsOf(shape, waits) },
    num_running: isEmpty ? 0 : shape.running.reduce((sum, num) => sum + num, 0),
    num_parked: isEmpty ? 0 : shape.parked,
    longest_parked_s: shape.parked > 0 ? 6.2 : null,
    num_parked_by_memory: shape.rank === 1 ? 3 : 0,
    tokens_per_s: isEmpty ? 0 : shape.tokens,
    num_refused: 0,
    preemptible: shape.rank > 0,
  };
}

const NOBODY: WaitingView = { num: 0, oldest_s: 0, num_late: 0, waits_s: [], tenants: [], num_more: 0, num_more_tenants: 0 };

/** lumen-docs has had more than its share of medium; its requests wait for those of fjord-search. */
function tenantsOf(shape: Shape, waits: readonly number[]): Pick<WaitingView, 'tenants' | 'num_more' | 'num_more_tenants'> {
  const room = 'It lacks 14 blocks of KV cache, though 16 slots are free.';
  const first = waits[0];
  if (first === undefined) return { tenants: [], num_more: 0, num_more_tenants: 0 };
  const mine = Math.ceil(waits.length / 2);
  const more = Math.floor((waits.length - mine) / 2);
  const turn = [
    'It is next in line.',
    'fjord-search and lumen-docs share medium; lumen-docs used 61 % of the class\'s tokens in the last minute against 50 %, so fjord-search goes first.',
    '9 requests of high go first: its TTFT objective is near and can still be met.',
  ][shape.rank]!;
  const lumen: TenantWaiting = { tenant: 'lumen-docs', num: mine, num_running: 40, oldest_s: first, num_ahead: shape.rank * 6, predicted_start_s: 0.4 + shape.rank * 2.3, share_got: 0.61, share_due: 0.5, reason: 'no_blocks', why: [room, turn] };
  const fjord: TenantWaiting = { ...lumen, tenant: 'fjord-search', num: waits.length - mine - more, num_running: 18, oldest_s: first * 0.8, share_got: 0.39, why: [room, 'It is next in line.'] };
  const batch: TenantWaiting = { ...lumen, tenant: 'nightly-batch', num: 0, num_running: 3, oldest_s: 0, num_ahead: null, predicted_start_s: null, share_got: 0.02, share_due: null, reason: '', why: [] };
  return { tenants: fjord.num > 0 ? [lumen, fjord, batch] : [lumen, batch], num_more: more, num_more_tenants: more > 0 ? 3 : 0 };
}

const cells = new Map<string, Cell[]>();

function cellsOn(worker: string, index: number, now: number): Cell[] {
  if (scenario === 'empty') return [];
  const known = cells.get(worker);
  if (known !== undefined) return known;
  const made = SHAPES.flatMap((shape) => {
    const running = Array.from({ length: shape.running[index]! }, (_, n) => cell(shape, n >= shape.running[index]! - (shape.rank === 1 ? 8 : 1) ? 'prefill' : 'decode', now));
    const parked = index === 0 ? Array.from({ length: shape.parked }, () => cell(shape, 'parked', now)) : [];
    return [...running, ...parked];
  });
  cells.set(worker, made);
  return made;
}

function cell(shape: Shape, state: Cell['state'], now: number): Cell {
  return {
    id: Math.floor(random() * 16 ** 6).toString(16).padStart(6, '0'),
    class_id: shape.id,
    state,
    late: shape.rank === 0 && state === 'decode' && random() < 0.13,
    arrived_at: now - 1 - random() * 11,
    num_prompt_tokens: 600 + Math.floor(random() * 900),
    num_generated_tokens: state === 'prefill' ? 0 : Math.floor(20 + random() * 400),
    num_blocks: 40 + Math.floor(random() * 60),
  };
}

function worker(id: string, index: number, now: number, version: number): WorkerLive {
  const isSilent = scenario === 'silent' && index === 2;
  const running = [47, 52, 44, 49][index]!;
  return {
    id,
    state: isSilent ? 'silent' : drained.has(id) ? 'draining' : 'live',
    seen_at: isSilent ? silentSince - 3 : now - 0.2 - index * 0.1,
    lease_ends_at: isSilent ? silentSince + 7 : now + 9,
    device: {
      kind: 'cuda',
      name: 'NVIDIA H200',
      busy: 0.94,
      memory_used_bytes: 128e9 + index * 1e9,
      memory_total_bytes: 141e9,
      power_w: 611 - index * 4,
      energy_estimated: false,
      joules_per_1k_tokens: 356 - index * 5,
    },
    policy_version: version,
    batch_limit: 52,
    num_slots: 64,
    num_running: scenario === 'empty' ? 0 : running,
    num_blocks: 60_000,
    num_used_blocks: scenario === 'empty' ? 0 : hasBroken() ? 59_700 : 43_000,
    step_p50_s: 0.0256,
    step_p99_s: 0.0386,
    overhead_p50_s: 0.00031,
    tokens_per_s: 1700,
    cells: cellsOn(id, index, now),
  };
}

function decision(at: number, kind: string, classId: string, requestId: string, text: string, like: number): Decision {
  return { at, kind, reason: kind, class_id: classId, request_id: requestId, text, num_like: like };
}

function decisions(now: number): Decision[] {
  return [
    decision(now - 1, 'waiting_for_blocks', 'high', '9c1e', 'Waits for 14 blocks on every worker; its TTFT objective passed 210 ms ago.', 9),
    decision(now - 8, 'scheduled', 'high', '7f3a', 'Scheduled ahead of its turn: its TTFT objective was 12 ms away. The debt is booked to high.', 6),
    decision(now - 9, 'preempted', 'low', 'b41c', 'Preempted by 7f3a (high): its TTFT objective was 12 ms away. Its 248 blocks were copied out in 11 ms.', 4),
    decision(now - 17, 'not_preempted', 'medium', 'e02d', 'Was not preempted for 51d0 (high): policy v41 does not let medium yield.', 38),
    decision(now - 54, 'resumed', 'low', '5d70', 'Resumed after 6.2 s parked: blocks came free on node2-gpu0; nothing was recomputed.', 0),
  ];
}

function verdict(now: number): LiveSnapshot['verdict'] {
  const base = { class_id: null, metric: null, since: null, num_late: 0, num_requests: 0, attainment: null, num_more: 0, causes: [], rule_path: null };
  switch (scenario) {
    case 'empty':
      return { ...base, kind: 'no_traffic' };
    case 'no-worker':
      return { ...base, kind: 'no_worker' };
    case 'broken':
    case 'no-cause':
    case 'wordy':
    case 'changed':
      return {
        ...base,
        kind: 'broken',
        class_id: 'high',
        metric: 'ttft',
        since: begunAt,
        num_late: 317,
        num_requests: 3604,
        attainment: scenario === 'wordy' ? 0.9905 : 0.912,
        causes: scenario === 'no-cause' ? [] : causes(now),
        rule_path: scenario === 'no-cause' ? null : 'classes.1.preemption.preemptible',
      };
    default:
      return { ...base, kind: 'kept', class_id: 'high', metric: 'tpot', since: now - 6 * 86_400 - 4 * 3600 };
  }
}

function causes(now: number): LiveSnapshot['verdict']['causes'] {
  if (scenario === 'wordy') {
    const text = 'Nobody is left to yield: 11 low requests are parked, and policy v41 does not let medium yield. 38 rescues failed on this rule in the last minute.';
    return [-5, 0, 30].map((s) => ({ at: begunAt + s, text }));
  }
  return [
    { at: begunAt - 5, text: 'KV cache passed 95 % on all 4 workers. high now waits for free blocks, not for slots.' },
    { at: begunAt, text: 'Nobody is left to yield: 11 low requests are parked, and policy v41 does not let medium yield. 38 rescues failed on this rule in the last minute.' },
    { at: Math.min(now, begunAt + 30), text: 'Batch limit 64 → 60 on node1-gpu0: ITL p99 averaged 51.3 ms, over 48 ms.' },
  ];
}

export function snapshot(now: number, version: number): LiveSnapshot {
  number += 1;
  const hasWorkers = scenario !== 'no-worker';
  const workers = hasWorkers ? WORKERS.map((id, index) => worker(id, index, now, version)) : [];
  const isEmpty = scenario === 'empty';
  return {
    type: 'snapshot',
    at: now,
    number,
    policy_version: version,
    num_workers: workers.length,
    num_workers_on_policy: workers.filter((one) => one.state === 'live').length,
    gateways_at: now - 0.2,
    workers_at: hasWorkers ? now - 0.25 : null,
    devices_at: hasWorkers ? now - 0.9 : null,
    verdict: verdict(now),
    classes: SHAPES.map((shape) => classLive(shape, now)),
    workers,
    tokens_per_s: isEmpty ? 0 : 6840,
    goodput_rps: isEmpty ? null : 26.1,
    finished_rps: isEmpty ? null : 27.4,
    step_p50_s: isEmpty ? null : 0.0256,
    step_p99_s: isEmpty ? null : 0.0386,
    batch_limit: hasWorkers ? 52 : null,
    num_running: isEmpty ? 0 : 192,
    num_waiting: isEmpty ? 0 : 83,
    num_parked: isEmpty ? 0 : 14,
    num_slots: 208,
    limit_changes: isEmpty ? [] : [
      { at: begunAt + 60, worker: 'node1-gpu0', before: 56, after: 52, itl_s: 0.0489, target_s: 0.04 },
      { at: begunAt + 30, worker: 'node1-gpu0', before: 60, after: 56, itl_s: 0.0513, target_s: 0.04 },
    ],
    decisions: isEmpty ? [] : decisions(now),
    new_points: !isEmpty && number % 40 === 0 ? [point(now)] : [],
  };
}
