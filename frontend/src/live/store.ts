// What the page knows of the pool: the last snapshot, the charts' past and the connection. One object, replaced whole.

import type { Hello, LiveMessage, LiveSnapshot, Point } from '../api/live';
import type { Connection, ConnectionEvent } from './connection';
import { nextConnection } from './connection';

export interface LiveState {
  connection: Connection;
  hello: Hello | null;
  snapshot: LiveSnapshot | null;
  points: readonly Point[];
  /** The server's clock minus this browser's monotonic clock, both in seconds; null before the first message. */
  clockOffsetS: number | null;
  /** When the last message came, on the browser's monotonic clock. */
  receivedAt: number;
  /** The server refused the session: only signing in again helps. */
  refused: boolean;
}

export const INITIAL: LiveState = {
  connection: { kind: 'connecting', attempt: 1 },
  hello: null,
  snapshot: null,
  points: [],
  clockOffsetS: null,
  receivedAt: 0,
  refused: false,
};

/** The charts never look back further than the longest span that can be chosen. */
export const MAX_HISTORY_S = 6 * 3600 + 60;

/** Take one message. `receivedAt` is the browser's monotonic clock in seconds. */
export function receive(known: LiveState, message: LiveMessage, receivedAt: number): LiveState {
  const state = { ...known, receivedAt };
  switch (message.type) {
    case 'hello':
      return { ...state, hello: message, clockOffsetS: message.server_time - receivedAt };
    case 'history':
      return { ...state, points: message.points };
    case 'snapshot':
      return {
        ...state,
        snapshot: message,
        points: appended(state.points, message.new_points),
        clockOffsetS: closerOffset(state.clockOffsetS, message.at - receivedAt),
      };
  }
}

export function connectionChanged(state: LiveState, event: ConnectionEvent): LiveState {
  const connection = nextConnection(state.connection, event);
  return connection === state.connection ? state : { ...state, connection };
}

/** The fastest delivery tells the offset best: a late message only makes the server's clock look slow. */
function closerOffset(known: number | null, measured: number): number {
  return known === null ? measured : Math.max(known, measured);
}

function appended(points: readonly Point[], fresh: readonly Point[]): readonly Point[] {
  if (fresh.length === 0) return points;
  const newest = points[points.length - 1]?.at ?? -Infinity;
  const added = fresh.filter((point) => point.at > newest);
  const last = added[added.length - 1]?.at ?? newest;
  return [...points, ...added].filter((point) => point.at > last - MAX_HISTORY_S);
}
