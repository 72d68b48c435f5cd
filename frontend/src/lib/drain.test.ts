import { describe, expect, it } from 'vitest';
import { allDrain, drainState, drainWords } from './drain';
import { aSnapshot, aWorker } from './testing';

describe('draining a worker', () => {
  it('says what happens to what runs, what waits and what comes', () => {
    const snapshot = aSnapshot({ workers: [aWorker('w1'), aWorker('w2'), aWorker('w3')] });
    expect(drainWords(aWorker('w1', { num_running: 3 }), snapshot)).toEqual([
      'It takes no new request from then on. Its 3 requests end here; none is dropped.',
      'What waits and what comes goes to the other 2 workers.',
      'The order holds for a day, or until you let it resume.',
    ]);
  });

  it('warns when nobody else is live', () => {
    const snapshot = aSnapshot({ workers: [aWorker('w1'), aWorker('w2', { state: 'silent' })], num_waiting: 4 });
    expect(drainWords(aWorker('w1', { num_running: 0 }), snapshot).join(' ')).toContain(
      'It runs nothing now. No other worker is live: new requests are refused with 503 until one is, or until this one resumes. 4 waiting requests keep their place.',
    );
  });

  it('says how many are left, and when the worker may be stopped', () => {
    expect(drainState(aWorker('w1', { num_running: 3 }))).toBe('draining, 3 left');
    expect(drainState(aWorker('w1', { num_running: 0 }))).toBe('drained, safe to stop');
  });

  it('notices when every worker drains', () => {
    const draining = aWorker('w1', { state: 'draining' });
    expect(allDrain(aSnapshot({ workers: [draining] }))).toBe(true);
    expect(allDrain(aSnapshot({ workers: [draining, aWorker('w2')] }))).toBe(false);
    expect(allDrain(aSnapshot({ workers: [] }))).toBe(false);
  });
});
