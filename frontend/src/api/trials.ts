// Drafts on recorded traffic.

import type { Document } from '../lib/document';
import { request } from './http';

export interface Measured {
  num: number;
  num_refused: number;
  /** Share of the accepted that met both objectives. */
  within: number | null;
  ttft_p50_s: number | null;
  ttft_p99_s: number | null;
}

export interface Simulated extends Measured {
  target: number;
  ttft_objective_s: number;
  tpot_objective_s: number;
  token_share: number | null;
  longest_wait_s: number | null;
}

export interface TrialClass {
  class_id: string;
  measured: Measured | null;
  active: Simulated | null;
  draft: Simulated | null;
}

export interface Effect {
  kind: 'better' | 'worse' | 'same';
  class_id: string;
  text: string;
}

export interface TrialResult {
  from_at: number;
  to_at: number;
  num_requests: number;
  num_refused: number;
  num_guessed: number;
  num_cached: number;
  is_cut: boolean;
  num_workers: number;
  num_slots: number;
  num_kv_tokens: number;
  took_s: number;
  classes: TrialClass[];
  verdict: { headline: string; effects: Effect[] };
}

export interface TrialSummary {
  id: number;
  author: string;
  base_version: number;
  window_s: number | null;
  state: 'queued' | 'running' | 'done' | 'failed' | 'cancelled';
  created_at: string;
  finished_at: string | null;
  num_done: number;
  num_total: number;
  problem: string;
}

export interface Trial extends TrialSummary {
  document: Document;
  result: TrialResult | null;
}

export interface Traffic {
  windows: { window_s: number | null; num_requests: number }[];
  max_requests: number;
  num_workers: number;
}

const ROOT = '/api/v1/policies';

export async function recordedTraffic(signal?: AbortSignal): Promise<Traffic> {
  return (await request<Traffic>(`${ROOT}/traffic`, signal ? { signal } : {})).body;
}

export async function startTrial(document: Document, windowS: number | null): Promise<Trial> {
  return (await request<Trial>(`${ROOT}/trials`, { method: 'POST', body: { document, window_s: windowS } })).body;
}

export async function trialOf(id: number, signal?: AbortSignal): Promise<Trial> {
  return (await request<Trial>(`${ROOT}/trials/${id}`, signal ? { signal } : {})).body;
}

export async function cancelTrial(id: number): Promise<Trial> {
  return (await request<Trial>(`${ROOT}/trials/${id}`, { method: 'DELETE' })).body;
}

/** The operator's newest trial against `baseVersion`, if there is one. */
export async function newestTrial(author: string, baseVersion: number, signal: AbortSignal): Promise<Trial | null> {
  const page = (await request<{ results: TrialSummary[] }>(`${ROOT}/trials`, { signal })).body;
  const found = page.results.find((one) => one.author === author && one.base_version === baseVersion && one.state !== 'cancelled');
  return found === undefined ? null : trialOf(found.id, signal);
}
