import { describe, expect, it } from 'vitest';
import { freeSlots } from './lanes';
import { aClass, aSnapshot, aTenant, aWorker } from './testing';
import { moreWords, predictedStart, tokenShare, waitingClasses, whyNotStarted } from './waiting';

const waiting = (num: number, changes = {}) => ({ num, oldest_s: 4.2, num_late: 0, waits_s: [4.2], tenants: [], num_more: 0, num_more_tenants: 0, ...changes });

describe('who waits', () => {
  it('lists the classes in which somebody does', () => {
    const snapshot = aSnapshot({ classes: [aClass('high'), aClass('low', { waiting: waiting(2) })] });
    expect(waitingClasses(snapshot).map((one) => one.id)).toEqual(['low']);
  });

  it('marks a predicted start as an estimate', () => {
    expect(predictedStart(aTenant('acme'))).toBe('est. in 3.1 s');
  });

  it('predicts nothing it does not know', () => {
    expect(predictedStart(aTenant('acme', { predicted_start_s: null }))).toBe('not known');
  });

  it('needs no estimate for what starts at once', () => {
    expect(predictedStart(aTenant('acme', { reason: 'not_claimed', predicted_start_s: 0.02 }))).toBe('with a next step');
  });

  it('sets what a tenant had beside what it is due', () => {
    expect(tokenShare(aTenant('acme'))).toBe('61 %, due 50 %');
    expect(tokenShare(aTenant('acme', { share_due: null }))).toBe('61 %');
    expect(tokenShare(aTenant('acme', { share_got: null }))).toBe('none yet');
  });

  it('sums those that are not listed', () => {
    expect(moreWords(aClass('low', { waiting: waiting(40, { num_more: 33, num_more_tenants: 11 }) }))).toBe('33 more of 11 other tenants');
    expect(moreWords(aClass('low', { waiting: waiting(40, { num_more: 0 }) }))).toBe('');
  });
});

describe('a free slot while somebody waits', () => {
  const why = 'Not claimed yet: 4 slots are free, and a worker claims it before one of its next steps.';
  const waits = aClass('low', { waiting: waiting(1, { tenants: [aTenant('acme', { why: [why] })] }) });

  it('comes with the reason', () => {
    const snapshot = aSnapshot({ num_waiting: 1, classes: [waits], workers: [aWorker('w1', { batch_limit: 8, num_running: 4 })] });
    expect(freeSlots(snapshot)).toEqual({ head: '4 free slots', why: `1 waiting. ${why}` });
  });

  it('names the class where others wait too', () => {
    const snapshot = aSnapshot({ num_waiting: 3, classes: [waits, aClass('batch', { waiting: waiting(2) })] });
    expect(whyNotStarted(snapshot)).toBe('low: not claimed yet: 4 slots are free, and a worker claims it before one of its next steps.');
  });
});
