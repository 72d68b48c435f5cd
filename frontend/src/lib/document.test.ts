import { describe, expect, it } from 'vitest';
import type { Document } from './document';
import { changesBetween, rebased, retired, reverted, valueAt, withNewClass, withValue } from './document';

const BASE: Document = {
  classes: [
    { id: 'high', rank: 0, weight: 60, slo: { ttft_s: 0.8 } },
    { id: 'low', rank: 1, weight: 10, slo: { ttft_s: 30 } },
  ],
  default_class: null,
  retired: {},
  batch_limit: { max_slots: 64, min_slots: 8 },
};

describe('paths', () => {
  it('read and write the same place without touching the original', () => {
    const next = withValue(BASE, 'classes.1.slo.ttft_s', 20);
    expect(valueAt(next, 'classes.1.slo.ttft_s')).toBe(20);
    expect(valueAt(BASE, 'classes.1.slo.ttft_s')).toBe(30);
    expect(next.classes[0]).toBe(BASE.classes[0]);
  });

  it('of nothing are undefined', () => {
    expect(valueAt(BASE, 'classes.7.weight')).toBeUndefined();
  });
});

describe('the list of changes', () => {
  it('is empty for an untouched draft', () => {
    expect(changesBetween(BASE, BASE)).toEqual([]);
  });

  it('names class, field, before and after', () => {
    const draft = withValue(withValue(BASE, 'classes.0.weight', 70), 'batch_limit.max_slots', null);
    expect(changesBetween(BASE, draft)).toEqual([
      { kind: 'value', classId: 'high', field: 'weight', before: 60, after: 70 },
      { kind: 'value', classId: null, field: 'batch_limit.max_slots', before: 64, after: null },
    ]);
  });

  it('matches classes by name, not by place', () => {
    expect(changesBetween(BASE, { ...BASE, classes: [...BASE.classes].reverse() })).toEqual([]);
  });

  it('shows a new class and a retired one', () => {
    const draft = retired(BASE, withNewClass(BASE), 'high', 'low');
    expect(changesBetween(BASE, draft)).toEqual([
      { kind: 'added', classId: 'class-3' },
      { kind: 'retired', classId: 'high', fallback: 'low' },
    ]);
  });

  it.each([
    ['a value', withValue(BASE, 'classes.0.weight', 70)],
    ['a new class', withNewClass(BASE)],
    ['a retired class', retired(BASE, BASE, 'high', 'low')],
  ])('undoes %s completely', (_, draft) => {
    const [change] = changesBetween(BASE, draft);
    expect(change && reverted(BASE, draft, change)).toEqual(BASE);
  });
});

describe('retiring', () => {
  it('keeps the name taken and says who serves the rest', () => {
    expect(retired(BASE, BASE, 'high', 'low').retired).toEqual({ high: 'low' });
  });

  it('leaves nothing of a class that was never published', () => {
    const draft = withNewClass(BASE);
    expect(retired(BASE, draft, 'class-3', 'low')).toEqual(BASE);
  });

  it('clears a default class that is no more', () => {
    const draft = { ...BASE, default_class: 'high' };
    expect(retired(BASE, draft, 'high', 'low').default_class).toBeNull();
  });
});

describe('moving a draft onto a newer version', () => {
  const draft = withValue(BASE, 'classes.0.weight', 70);

  it('keeps both sides where they touch different fields', () => {
    const newer = withValue(BASE, 'batch_limit.max_slots', 32);
    const { document, conflicts } = rebased(BASE, draft, newer);
    expect(valueAt(document, 'classes.0.weight')).toBe(70);
    expect(valueAt(document, 'batch_limit.max_slots')).toBe(32);
    expect(conflicts).toEqual([]);
  });

  it('keeps the draft and says so where both changed the same field', () => {
    const newer = withValue(BASE, 'classes.0.weight', 50);
    const { document, conflicts } = rebased(BASE, draft, newer);
    expect(valueAt(document, 'classes.0.weight')).toBe(70);
    expect(conflicts).toHaveLength(1);
  });

  it('drops what concerns a class that is gone, and says so', () => {
    const { document, dropped } = rebased(BASE, draft, retired(BASE, BASE, 'high', 'low'));
    expect(document.classes.map((one) => one.id)).toEqual(['low']);
    expect(dropped).toHaveLength(1);
  });
});
