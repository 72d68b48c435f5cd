import { describe, expect, it } from 'vitest';
import { bytes, figure, latency, latencyBeside, list, mean, objective, percent, plural, significant, watts, wholePercent } from './format';

describe('live figures', () => {
  it.each([
    [0.00031, '0.3 ms'],
    [0.0039, '3.9 ms'],
    [0.0386, '39 ms'],
    [0.42, '420 ms'],
    [0.9996, '1.00 s'],
    [1.237, '1.24 s'],
    [24.14, '24.1 s'],
    [128.4, '128 s'],
  ])('writes %f s as %s', (seconds, words) => {
    expect(figure(latency(seconds))).toBe(words);
  });

  it('writes an unknown latency as a dash, never as zero', () => {
    expect(figure(latency(null))).toBe('–');
  });

  it('takes one digit more only where it would round onto its threshold', () => {
    expect(figure(latencyBeside(0.0399, 0.04))).toBe('39.9 ms');
    expect(figure(latencyBeside(0.0386, 0.04))).toBe('39 ms');
    expect(figure(latencyBeside(0.04, 0.04))).toBe('40 ms');
  });

  it('keeps three significant digits and commas', () => {
    expect([0.3512, 4.2, 26.14, 312.4, 6840].map((value) => significant(value))).toEqual(['0.351', '4.20', '26.1', '312', '6,840']);
  });

  it('writes a mean of slots whole where it is whole', () => {
    expect([mean(52), mean(51.5)]).toEqual(['52', '51.5']);
  });
});

describe('shares', () => {
  it('never rounds a broken promise up to a kept one', () => {
    expect(percent(0.98996)).toBe('98.9 %');
    expect(percent(0.99996)).toBe('99.99 %');
    expect([0, 0.002, 0.006, 1].map(wholePercent)).toEqual(['0 %', '< 1 %', '1 %', '100 %']);
  });

  it.each([
    [0.912, '91.2 %'],
    [0.99, '99 %'],
    [0.29, '29 %'],
    [1, '100 %'],
    [null, '–'],
  ])('writes %s as %s', (share, words) => {
    expect(percent(share)).toBe(words);
  });
});

describe('objectives', () => {
  it.each([
    [0.8, '800 ms'],
    [0.04, '40 ms'],
    [3, '3 s'],
    [2.5, '2.5 s'],
    [1200, '1,200 s'],
  ])('writes %f s as the operator set it: %s', (seconds, words) => {
    expect(objective(seconds)).toBe(words);
  });
});

describe('other units', () => {
  it('writes bytes, watts, plurals and lists', () => {
    expect(bytes(128e9)).toBe('128 GB');
    expect(bytes(1_234_000_000)).toBe('1.23 GB');
    expect(watts(2440)).toBe('2.44 kW');
    expect(plural(1, 'worker')).toBe('1 worker');
    expect(plural(1200, 'worker')).toBe('1,200 workers');
    expect(list(['high', 'normal', 'low'])).toBe('high, normal and low');
  });
});
