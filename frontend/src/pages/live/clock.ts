// What every part of the Live page needs to know of time and connection, in one value.

import { createContext, useContext } from 'react';
import type { ConnectionView } from '../../live/connection';
import type { PanelState } from '../../lib/panelState';
import { panelState } from '../../lib/panelState';

export interface LiveClock {
  /** Now on the server's clock. */
  now: number;
  connection: ConnectionView['kind'];
  intervalS: number;
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
export function usePanelState(sourceAt: number | null | undefined, hasData = true): PanelState {
  const { now, connection, intervalS, loaded } = useLiveClock();
  return panelState({ connection, sourceAt: sourceAt ?? null, intervalS, now, hasData, loaded });
}
