// Snapshots for unit tests: quiet and complete, to be changed where a test says so.

import type { ClassLive, LiveSnapshot, PromiseState, TenantWaiting, Verdict, WorkerLive } from '../api/live';

export const NOW = Date.UTC(2026, 10, 24, 3, 12, 6) / 1000;

const kept: PromiseState = { kept: true, broken_since: null, num_late: 0, num_requests: 400, attainment: 1 };

export function aClass(id: string, changes: Partial<ClassLive> = {}): ClassLive {
  return {
    id,
    rank: 0,
    color: 0,
    weight: 60,
    objective: { ttft_s: 0.8, tpot_s: 0.04, target: 0.99, kept_again: 0.991, governing: 'p99', max_wait_s: 2 },
    window_s: 300,
    ttft: { p50: 0.2, p95: 0.4, p99: 0.57, num: 400 },
    tpot: { p50: 0.022, p95: 0.03, p99: 0.0346, num: 400 },
    ttft_state: kept,
    tpot_state: kept,
    attainment: 0.996,
    num_judged: 400,
    num_late: 2,
    num_overdue: 0,
    judged_since: null,
    budget_left: 0.71,
    budget_since: NOW - 30 * 86_400,
    burn_rate: 0.4,
    share_due: 0.6,
    share_got: 0.58,
    waiting: { num: 0, oldest_s: 0, num_late: 0, waits_s: [], tenants: [], num_more: 0, num_more_tenants: 0 },
    num_running: 10,
    num_parked: 0,
    longest_parked_s: null,
    num_parked_by_memory: 0,
    tokens_per_s: 100,
    num_refused: 0,
    preemptible: true,
    ...changes,
  };
}

export function aTenant(tenant: string, changes: Partial<TenantWaiting> = {}): TenantWaiting {
  return {
    tenant,
    num: 1,
    num_running: 0,
    oldest_s: 4.2,
    num_ahead: 0,
    predicted_start_s: 3.1,
    share_got: 0.61,
    share_due: 0.5,
    reason: 'all_slots',
    why: ['All 8 slots are busy.', 'It is next in line.'],
    ...changes,
  };
}

export function aWorker(id: string, changes: Partial<WorkerLive> = {}): WorkerLive {
  return {
    id,
    state: 'live',
    seen_at: NOW - 0.2,
    lease_ends_at: NOW + 9,
    device: {
      kind: 'cpu',
      name: 'cpu',
      busy: 0.9,
      memory_used_bytes: null,
      memory_total_bytes: null,
      power_w: null,
      energy_estimated: true,
      joules_per_1k_tokens: null,
    },
    policy_version: 41,
    batch_limit: 52,
    num_slots: 64,
    num_running: 47,
    num_blocks: 1000,
    num_used_blocks: 700,
    step_p50_s: 0.025,
    step_p99_s: 0.039,
    overhead_p50_s: 0.0003,
    tokens_per_s: 100,
    cells: [],
    ...changes,
  };
}

export function aVerdict(changes: Partial<Verdict> = {}): Verdict {
  return {
    kind: 'kept',
    class_id: null,
    metric: null,
    since: null,
    num_late: 0,
    num_requests: 0,
    attainment: null,
    num_more: 0,
    causes: [],
    rule_path: null,
    ...changes,
  };
}

export function aSnapshot(changes: Partial<LiveSnapshot> = {}): LiveSnapshot {
  return {
    type: 'snapshot',
    at: NOW,
    number: 1,
    policy_version: 41,
    num_workers: 1,
    num_workers_on_policy: 1,
    gateways_at: NOW,
    workers_at: NOW,
    devices_at: NOW,
    verdict: aVerdict(),
    classes: [aClass('high'), aClass('normal', { rank: 1, color: 1 }), aClass('low', { rank: 2, color: 2 })],
    workers: [aWorker('w1')],
    tokens_per_s: 300,
    goodput_rps: 3,
    finished_rps: 3,
    step_p50_s: 0.025,
    step_p99_s: 0.039,
    batch_limit: 52,
    num_running: 47,
    num_waiting: 0,
    num_parked: 0,
    num_slots: 52,
    limit_changes: [],
    decisions: [],
    new_points: [],
    ...changes,
  };
}
