import { describe, expect, it } from 'vitest';
import type { Document } from './document';
import { retired, withValue } from './document';
import { guardRails } from './guardRails';
import { aClass, aSnapshot, aWorker } from './testing';

const BASE: Document = {
  classes: [
    { id: 'high', rank: 0, queue_limit: 100, preemption: { preemptible: false } },
    { id: 'low', rank: 1, queue_limit: 100, preemption: { preemptible: true } },
  ],
  default_class: null,
  retired: {},
  batch_limit: { max_slots: 64 },
};
const waiting = { num: 150, oldest_s: 1, num_late: 0, waits_s: [], tenants: [], num_more: 0, num_more_tenants: 0 };
const LIVE = aSnapshot({ classes: [aClass('high', { num_running: 90 }), aClass('low', { waiting })], workers: [aWorker('w1', { num_running: 47 })] });

describe('before publishing', () => {
  it('says nothing about a harmless draft', () => {
    expect(guardRails(BASE, withValue(BASE, 'batch_limit.max_slots', 60), aSnapshot())).toEqual([]);
  });

  it('says which running requests may be parked', () => {
    expect(guardRails(BASE, withValue(BASE, 'classes.0.preemption.preemptible', true), LIVE)[0]).toMatch(/^high has 90 requests running now\./);
  });

  it('says who serves what a retired class leaves', () => {
    expect(guardRails(BASE, retired(BASE, BASE, 'low', 'high'), LIVE)).toContain('low ends. Its 150 waiting requests and all later ones are served as high.');
  });

  it('says that a smaller batch stops nothing', () => {
    expect(guardRails(BASE, withValue(BASE, 'batch_limit.max_slots', 32), LIVE).join()).toContain('1 worker runs more than 32 now. Nothing is stopped');
  });

  it('says when a queue is already longer than its limit', () => {
    expect(guardRails(BASE, BASE, LIVE).join()).toContain('low has 150 waiting, more than its limit of 100');
  });
});
