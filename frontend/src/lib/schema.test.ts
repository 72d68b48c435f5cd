import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { Document, Json } from './document';
import { withValue } from './document';
import { formPaths, homeless, localMistakes, sentence } from './mistakes';
import type { Schema } from './schema';
import { classFields, sharedSections } from './schema';
import { inWords, shown, stored, unitOf } from './units';

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../dev/${name}`, import.meta.url), 'utf8'));
const schema = read('policy-schema.json') as Schema;
const policy = read('policy.json') as Document;
const perClass = classFields(schema);
const shared = sharedSections(schema).flatMap((section) => section.fields);

function leafPaths(value: Json, prefix: string): string[] {
  if (value === null || typeof value !== 'object') return [prefix];
  return Object.entries(value).flatMap(([key, child]) => leafPaths(child, prefix === '' ? key : `${prefix}.${key}`));
}

describe('the form', () => {
  it('has a field for every value of the document', () => {
    const missing = leafPaths(policy, '').filter((path) => !formPaths(policy, perClass, shared).has(path) && !path.startsWith('retired'));
    expect(missing).toEqual([]);
  });

  it('takes titles, kinds and emptiness from the schema', () => {
    const field = shared.find((one) => one.path === 'batch_limit.max_slots');
    expect(field).toMatchObject({ title: 'At most', kind: 'integer', nullable: true, minimum: 1 });
    expect(perClass.find((one) => one.path === 'admit_on')?.choices).toEqual(['ttft', 'max_wait']);
  });
});

describe('units', () => {
  const field = (path: string) => perClass.find((one) => one.path === path) ?? perClass[0]!;

  it('show seconds below one as milliseconds', () => {
    const unit = unitOf(field('slo.ttft_s'), 0.8);
    expect([unit.label, shown(0.8, unit), stored(750, unit)]).toEqual(['ms', 800, 0.75]);
  });

  it('show longer ones as seconds, and shares as percent', () => {
    expect(unitOf(field('max_wait_s'), 30).label).toBe('s');
    const share = unitOf(field('slo.target'), 0.99);
    expect([shown(0.99, share), stored(99.5, share)]).toEqual([99, 0.995]);
  });

  it('survive the way there and back without binary dust', () => {
    const unit = unitOf(field('slo.tpot_s'), 0.04);
    for (const value of [0.001, 0.0123, 0.07, 0.3, 0.1 + 0.2]) {
      expect(stored(shown(value, unit), unit)).toBe(Number(value.toPrecision(12)));
    }
  });

  it('write values as words for the list of changes', () => {
    expect(inWords(0.04, field('slo.tpot_s'))).toBe('40 ms');
    expect(inWords(true, field('preemption.preemptible'))).toBe('yes');
    expect(inWords(null, field('max_prompt_tokens'))).toBe('not set');
    expect(inWords(50, field('preemption.max_generated_tokens'))).toBe('50 tokens');
  });
});

describe('mistakes', () => {
  it('find what is required and missing', () => {
    const draft = { ...policy, classes: policy.classes.map((one, index) => (index === 1 ? { ...one, weight: null } : one)) };
    expect(localMistakes(draft, perClass, shared)).toEqual([{ path: 'classes.1.weight', message: 'a value is missing. Give one.' }]);
  });

  it('find numbers outside their limits, in the units of the form', () => {
    const found = (path: string, value: Json): string | undefined => localMistakes(withValue(policy, path, value), perClass, shared)[0]?.message;
    expect(found('classes.1.slo.target', 1.2)).toBe('120 % is too much. Choose less than 100 %.');
    expect(found('classes.0.slo.ttft_s', -0.005)).toBe('-5 ms is too little. Choose more than 0 s.');
    expect(found('batch_limit.min_slots', 0)).toBe('0 slots is too little. Choose 1 slot or more.');
    expect(localMistakes(policy, perClass, shared)).toEqual([]);
  });

  it('name class and field once', () => {
    const weight = perClass.find((one) => one.path === 'weight');
    expect(sentence(policy, { path: 'classes.0.weight', message: 'should be greater than 0; got -1' }, weight)).toBe('high, weight: should be greater than 0; got -1');
    const ttft = perClass.find((one) => one.path === 'slo.ttft_s');
    expect(sentence(policy, { path: 'classes.0.slo.ttft_s', message: 'a value is missing.' }, ttft)).toBe('high, TTFT objective: a value is missing.');
    expect(sentence(policy, { path: 'classes.0.max_wait_s', message: 'high: 2.5 s is shorter.' }, undefined)).toBe('high: 2.5 s is shorter.');
  });

  it('that belong to no field are shown above the form', () => {
    const paths = formPaths(policy, perClass, shared);
    expect(homeless([{ path: 'classes', message: 'too many' }, { path: 'classes.0.weight', message: 'bad' }], paths)).toHaveLength(1);
  });
});
