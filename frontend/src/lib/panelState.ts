// The five states of a panel (and the sixth, live), derived in one place from what is known.

import type { ConnectionView } from '../live/connection';

export interface Failure {
  what: string;
  detail: string;
  /** The id to quote; null when the failure never reached a server. */
  id: string | null;
}

export type PanelState =
  | { kind: 'loading' }
  | { kind: 'empty' }
  | { kind: 'live'; ageS: number }
  | { kind: 'stale'; ageS: number }
  | { kind: 'disconnected'; ageS: number }
  | { kind: 'error'; failure: Failure };

export interface PanelFacts {
  connection: ConnectionView['kind'];
  /** When the panel's source last spoke, on the server's clock; null if it never has. */
  sourceAt: number | null;
  /** How often the source is expected to speak. */
  intervalS: number;
  /** Now, on the server's clock. */
  now: number;
  /** There is something to draw. */
  hasData: boolean;
  /** The page has received its first numbers. */
  loaded: boolean;
  failure?: Failure | null;
}

/** Numbers older than this many intervals are stale. */
export const STALE_INTERVALS = 3;

/** Sources are not timed more closely than this: a browser tab and a busy machine jitter by hundreds of ms. */
export const MIN_INTERVAL_S = 0.75;

/** The age from which numbers of a source with this interval must not look live. */
export function staleAfterS(intervalS: number): number {
  return STALE_INTERVALS * Math.max(intervalS, MIN_INTERVAL_S);
}

/** A worker that has not spoken for so long loses its lease: the page then calls it silent. */
const LEASE_S = 5;

/** How often workers speak: between two steps, so a step that takes seconds is their interval. Never beyond the lease. */
export function workerIntervalS(intervalS: number, stepS: number | null): number {
  return Math.max(intervalS, Math.min(stepS ?? 0, LEASE_S / STALE_INTERVALS));
}

export function panelState(facts: PanelFacts): PanelState {
  if (facts.failure) return { kind: 'error', failure: facts.failure };
  if (!facts.loaded) return { kind: 'loading' };
  const ageS = facts.sourceAt === null ? 0 : Math.max(0, facts.now - facts.sourceAt);
  if (facts.connection === 'lost') return { kind: 'disconnected', ageS };
  if (!facts.hasData) return { kind: 'empty' };
  return facts.sourceAt !== null && ageS > staleAfterS(facts.intervalS) ? { kind: 'stale', ageS } : { kind: 'live', ageS };
}

/** Whether the panel's numbers must not look live. */
export function isOld(state: PanelState): boolean {
  return state.kind === 'stale' || state.kind === 'disconnected';
}
