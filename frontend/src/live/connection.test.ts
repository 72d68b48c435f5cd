import { describe, expect, it } from 'vitest';
import type { Connection } from './connection';
import { backoff, MAX_DELAY_S, nextConnection, viewOf } from './connection';

const closed = (at: number) => ({ kind: 'closed', at, jitter: 0 }) as const;

describe('the connection', () => {
  it('shows the loss at once and tries again after a second', () => {
    const next = nextConnection({ kind: 'open' }, closed(50));
    expect(viewOf(next)).toEqual({ kind: 'lost', lostAt: 50, attempt: 1, retryAt: 51 });
  });

  it('counts attempts and keeps the time of the loss while they fail', () => {
    let state: Connection = nextConnection({ kind: 'open' }, closed(50));
    state = nextConnection(state, { kind: 'retry' });
    state = nextConnection(state, closed(52));
    expect(viewOf(state)).toEqual({ kind: 'lost', lostAt: 50, attempt: 2, retryAt: 54 });
  });

  it('is live again with the first message, and forgets its attempts', () => {
    const retrying: Connection = { kind: 'retrying', attempt: 7, lostAt: 50 };
    const open = nextConnection(retrying, { kind: 'opened' });
    expect(viewOf(open)).toEqual({ kind: 'live' });
    expect(viewOf(nextConnection(open, closed(90)))).toMatchObject({ attempt: 1, lostAt: 90 });
  });

  it('stays lost while an attempt is being made', () => {
    expect(viewOf({ kind: 'retrying', attempt: 3, lostAt: 50 })).toEqual({ kind: 'lost', lostAt: 50, attempt: 3, retryAt: null });
  });

  it('ignores a second report of the same loss', () => {
    const lost = nextConnection({ kind: 'open' }, closed(50));
    expect(nextConnection(lost, closed(60))).toBe(lost);
  });
});

describe('the waits', () => {
  it('double up to a limit', () => {
    expect([1, 2, 3, 4, 5, 20].map((attempt) => backoff(attempt, 0))).toEqual([1, 2, 4, 8, MAX_DELAY_S, MAX_DELAY_S]);
  });

  it('are spread by up to a quarter', () => {
    expect(backoff(3, 1)).toBe(3);
  });
});
