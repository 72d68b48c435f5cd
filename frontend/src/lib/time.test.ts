import { describe, expect, it } from 'vitest';
import { age, clock, duration, instant, utc } from './time';

const AT = Date.UTC(2026, 10, 24, 3, 7, 46) / 1000;

describe('durations', () => {
  it.each([
    [6.9, '6 s'],
    [260, '4 min 20 s'],
    [300, '5 min'],
    [3600 * 31, '1 d 7 h'],
    [6 * 86_400 + 4 * 3600, '6 d 4 h'],
    [3720, '1 h 2 min'],
    [-3, '0 s'],
  ])('writes %f s as %s', (seconds, words) => {
    expect(duration(seconds)).toBe(words);
  });
});

describe('instants', () => {
  it('are in UTC', () => {
    expect(clock(AT)).toBe('03:07:46');
    expect(utc(AT)).toBe('03:07:46 UTC');
  });

  it('carry their day once it is another one', () => {
    expect(instant(AT, AT + 3600)).toBe('03:07:46 UTC');
    expect(instant(AT, AT + 86_400)).toBe('24 Nov, 03:07 UTC');
  });
});

describe('ages', () => {
  it('have tenths below ten seconds and are never negative', () => {
    expect([age(0.24), age(14.6), age(-1)]).toEqual(['0.2 s', '14 s', '0.0 s']);
  });
});
