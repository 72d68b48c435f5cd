// The connection of the live view as a state machine without I/O: events in, the next state out.

export type Connection =
  | { kind: 'connecting'; attempt: number }
  | { kind: 'open' }
  | { kind: 'waiting'; attempt: number; lostAt: number; retryAt: number }
  | { kind: 'retrying'; attempt: number; lostAt: number };

export type ConnectionEvent =
  | { kind: 'opened' }
  | { kind: 'closed'; at: number; jitter: number }
  | { kind: 'retry' };

/** What the page shows: `lost` covers both waiting for an attempt and making one. Times are of the browser's clock. */
export type ConnectionView =
  | { kind: 'connecting' }
  | { kind: 'live' }
  | { kind: 'lost'; lostAt: number; attempt: number; retryAt: number | null };

export const FIRST_DELAY_S = 1;
export const MAX_DELAY_S = 15;

/** Waits double from 1 s to 15 s; `jitter` in 0..1 spreads browsers by up to a quarter, so that they do not return at once. */
export function backoff(attempt: number, jitter: number): number {
  const base = Math.min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempt - 1));
  return base * (1 - jitter / 4);
}

export function nextConnection(now: Connection, event: ConnectionEvent): Connection {
  switch (event.kind) {
    case 'opened':
      return { kind: 'open' };
    case 'retry':
      return now.kind === 'waiting' ? { kind: 'retrying', attempt: now.attempt, lostAt: now.lostAt } : now;
    case 'closed':
      return closed(now, event.at, event.jitter);
  }
}

function closed(now: Connection, at: number, jitter: number): Connection {
  if (now.kind === 'waiting') return now;
  const attempt = now.kind === 'open' ? 1 : now.kind === 'retrying' ? now.attempt + 1 : now.attempt;
  const lostAt = now.kind === 'retrying' ? now.lostAt : at;
  return { kind: 'waiting', attempt, lostAt, retryAt: at + backoff(attempt, jitter) };
}

export function viewOf(connection: Connection): ConnectionView {
  switch (connection.kind) {
    case 'connecting':
      return { kind: 'connecting' };
    case 'open':
      return { kind: 'live' };
    case 'waiting':
      return { kind: 'lost', lostAt: connection.lostAt, attempt: connection.attempt, retryAt: connection.retryAt };
    case 'retrying':
      return { kind: 'lost', lostAt: connection.lostAt, attempt: connection.attempt, retryAt: null };
  }
}
