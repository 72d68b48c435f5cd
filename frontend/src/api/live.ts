// What the server sends on `/ws/live/`. Mirrors `controlplane/telemetry/schema.py` by hand; a test compares the two.
// Instants are seconds since the epoch on the server's clock, durations are seconds, shares run from 0 to 1.
// null means "not known", never zero.

export interface Percentiles {
  p50: number | null;
  p95: number | null;
  p99: number | null;
  num: number;
}

export type Percentile = 'p50' | 'p95' | 'p99';
export type Metric = 'ttft' | 'tpot';

export interface Objective {
  ttft_s: number;
  tpot_s: number;
  target: number;
  kept_again: number;
  governing: Percentile;
  max_wait_s: number;
}

export interface PromiseState {
  kept: boolean;
  broken_since: number | null;
  num_late: number;
  num_requests: number;
  attainment: number | null;
}

export interface TenantWaiting {
  tenant: string;
  num: number;
  num_running: number;
  oldest_s: number;
  num_ahead: number | null;
  predicted_start_s: number | null;
  share_got: number | null;
  share_due: number | null;
  reason: string;
  why: string[];
}

export interface WaitingView {
  num: number;
  oldest_s: number;
  num_late: number;
  waits_s: number[];
  tenants: TenantWaiting[];
  num_more: number;
  num_more_tenants: number;
}

export interface ClassLive {
  id: string;
  rank: number;
  color: number;
  weight: number;
  objective: Objective;
  window_s: number;
  ttft: Percentiles;
  tpot: Percentiles;
  ttft_state: PromiseState;
  tpot_state: PromiseState;
  attainment: number | null;
  num_judged: number;
  num_late: number;
  num_overdue: number;
  judged_since: number | null;
  budget_left: number | null;
  budget_since: number | null;
  burn_rate: number | null;
  share_due: number;
  share_got: number | null;
  waiting: WaitingView;
  num_running: number;
  num_parked: number;
  longest_parked_s: number | null;
  num_parked_by_memory: number;
  tokens_per_s: number;
  num_refused: number;
  preemptible: boolean;
}

export interface Cell {
  id: string;
  class_id: string;
  state: 'prefill' | 'decode' | 'parked';
  late: boolean;
  arrived_at: number;
  num_prompt_tokens: number;
  num_generated_tokens: number;
  num_blocks: number;
}

export interface DeviceLive {
  kind: 'cuda' | 'cpu';
  name: string;
  busy: number | null;
  memory_used_bytes: number | null;
  memory_total_bytes: number | null;
  power_w: number | null;
  energy_estimated: boolean;
  joules_per_1k_tokens: number | null;
}

export interface WorkerLive {
  id: string;
  state: 'live' | 'silent' | 'draining' | 'gone';
  seen_at: number;
  lease_ends_at: number | null;
  device: DeviceLive;
  policy_version: number;
  batch_limit: number;
  num_slots: number;
  num_running: number;
  num_blocks: number;
  num_used_blocks: number;
  step_p50_s: number | null;
  step_p99_s: number | null;
  overhead_p50_s: number | null;
  tokens_per_s: number;
  cells: Cell[];
}

export interface Cause {
  at: number;
  text: string;
}

export interface Verdict {
  kind: 'kept' | 'broken' | 'no_traffic' | 'no_worker';
  class_id: string | null;
  metric: Metric | null;
  since: number | null;
  num_late: number;
  num_requests: number;
  attainment: number | null;
  num_more: number;
  causes: Cause[];
  rule_path: string | null;
}

export interface Decision {
  at: number;
  kind: string;
  reason: string;
  class_id: string;
  request_id: string;
  text: string;
  num_like: number;
}

export interface BatchLimitChange {
  at: number;
  worker: string;
  before: number;
  after: number;
  itl_s: number;
  target_s: number;
}

export interface Point {
  at: number;
  ttft: Record<string, Percentiles>;
  tpot: Record<string, Percentiles>;
  tokens_per_s: Record<string, number>;
  waiting: Record<string, number>;
  step_p50_s: number | null;
  step_p99_s: number | null;
  batch_limit: number | null;
  num_running: number | null;
  kv_share: Record<string, number>;
  busy: Record<string, number>;
}

export interface Hello {
  type: 'hello';
  pool: string;
  model: string;
  server_time: number;
  interval_s: number;
  point_s: number;
  operator: string;
}

export interface History {
  type: 'history';
  points: Point[];
}

export interface LiveSnapshot {
  type: 'snapshot';
  at: number;
  number: number;
  policy_version: number | null;
  num_workers: number;
  num_workers_on_policy: number;
  gateways_at: number | null;
  workers_at: number | null;
  devices_at: number | null;
  verdict: Verdict;
  classes: ClassLive[];
  workers: WorkerLive[];
  tokens_per_s: number;
  goodput_rps: number | null;
  finished_rps: number | null;
  step_p50_s: number | null;
  step_p99_s: number | null;
  batch_limit: number | null;
  num_running: number;
  num_waiting: number;
  num_parked: number;
  num_slots: number;
  limit_changes: BatchLimitChange[];
  decisions: Decision[];
  new_points: Point[];
}

export type LiveMessage = Hello | History | LiveSnapshot;
