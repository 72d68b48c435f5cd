import { describe, expect, it } from 'vitest';
import type { PanelFacts } from './panelState';
import { isOld, panelState, workerIntervalS } from './panelState';

const live: PanelFacts = { connection: 'live', sourceAt: 100, intervalS: 1, now: 100.5, hasData: true, loaded: true };

describe('the state of a panel', () => {
  it('is live while its source speaks', () => {
    expect(panelState(live)).toEqual({ kind: 'live', ageS: 0.5 });
  });

  it('is loading before the first numbers', () => {
    expect(panelState({ ...live, loaded: false })).toEqual({ kind: 'loading' });
  });

  it('is empty when there is nothing to draw', () => {
    expect(panelState({ ...live, hasData: false })).toEqual({ kind: 'empty' });
  });

  it('is stale once its numbers are older than three intervals', () => {
    expect(panelState({ ...live, now: 103 }).kind).toBe('live');
    expect(panelState({ ...live, now: 103.1 })).toEqual({ kind: 'stale', ageS: expect.closeTo(3.1) as number });
  });

  it('is disconnected as soon as the connection is lost, however fresh the numbers', () => {
    expect(panelState({ ...live, connection: 'lost' })).toEqual({ kind: 'disconnected', ageS: 0.5 });
  });

  it('is an error of its own, whatever the others are', () => {
    const failure = { what: 'Energy could not be read', detail: 'NVML answered "not supported".', id: 'e-51c7' };
    expect(panelState({ ...live, failure })).toEqual({ kind: 'error', failure });
  });

  it('never has a negative age when the clocks differ', () => {
    expect(panelState({ ...live, now: 99 })).toEqual({ kind: 'live', ageS: 0 });
  });

  it('is old exactly when stale or disconnected', () => {
    expect(isOld({ kind: 'stale', ageS: 9 })).toBe(true);
    expect(isOld({ kind: 'disconnected', ageS: 0 })).toBe(true);
    expect(isOld({ kind: 'live', ageS: 0 })).toBe(false);
  });

  it('waits for a worker as long as its steps take', () => {
    const busy = { ...live, intervalS: workerIntervalS(0.25, 1.5), now: 104.4 };
    expect(panelState(busy).kind).toBe('live');
    expect(panelState({ ...busy, now: 104.6 }).kind).toBe('stale');
  });

  it('waits for no worker beyond its lease', () => {
    expect(panelState({ ...live, intervalS: workerIntervalS(0.25, 60), now: 105.1 }).kind).toBe('stale');
  });

  it('expects a worker without steps at the usual interval', () => {
    expect(workerIntervalS(0.25, null)).toBe(0.25);
  });
});
