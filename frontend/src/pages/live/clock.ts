// What every part of the Live page needs to know of time and connection, in one value.

import { createContext, useContext } from 'react';
import type { ConnectionView } from '../../live/connection';
import type { PanelState } from '../../lib/panelState';
import { panelState } from '../../lib/panelState';

export interface LiveClock {
  /** Now on the server's clock. */
  now: number;
  connection: ConnectionView['kind'];
  /** How often gateways speak, and how often workers do. */
  intervalS: number;
  workerIntervalS: number;
  pointS: number;
  spanS: number;
  loaded: boolean;
  brokenSince: number | null;
}

export const LiveClockContext = createContext<LiveClock | null>(null);

export function useLiveClock(): LiveClock {
  const clock = useContext(LiveClockContext);
  if (clock === null) throw new Error('a live panel outside the Live page');
  return clock;
}

/** The state of a panel whose numbers come from a source that last spoke at `sourceAt`. */
export function usePanelState(sourceAt: number | null | undefined, hasData = true, source: 'workers' | 'gateways' = 'workers'): PanelState {
  const { now, connection, loaded, ...clock } = useLiveClock();
  const intervalS = source === 'workers' ? clock.workerIntervalS : clock.intervalS;
  return panelState({ connection, sourceAt: sourceAt ?? null, intervalS, now, hasData, loaded });
}
