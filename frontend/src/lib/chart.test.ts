import { describe, expect, it } from 'vitest';
import { columns, isolated, latencyTick, silences, stacked, timeTicks, valueTicks } from './chart';

describe('value ticks', () => {
  it.each([
    [1.9, 2, [0, 1, 2]],
    [6840, 3, [0, 2500, 5000, 7500]],
    [0.04, 2, [0, 0.02, 0.04]],
    [64, 3, [0, 25, 50, 75]],
    [0, 3, [0, 0.5, 1]],
  ])('start at 0 and cover %f', (max, intervals, ticks) => {
    expect(valueTicks(max, intervals)).toEqual(ticks);
  });
});

describe('ticks of a latency', () => {
  it.each([
    [0, 0.15, '0'],
    [0.05, 0.04, '50 ms'],
    [5, 0.15, '5 s'],
    [0.5, 0.53, '0.5 s'],
  ])('say their unit: %f beside an objective of %f', (seconds, objective, text) => {
    expect(latencyTick(seconds, objective)).toBe(text);
  });
});

describe('time ticks', () => {
  it('stand on round times and leave room for the start of a broken promise', () => {
    expect(timeTicks(0, 900, 200)).toEqual([300, 600]);
    expect(timeTicks(0, 900, 200, 580)).toEqual([300]);
  });

  it('leave room for a start that is written inside the right edge', () => {
    expect(timeTicks(0, 900, 60, 890, 50)).not.toContain(720);
  });

  it('ignore a start that lies before the chart', () => {
    expect(timeTicks(900, 1800, 200, 850)).toEqual([1200, 1500]);
  });
});

describe('columns', () => {
  const read = [(point: { at: number; v: number | null }) => point.v];

  it('break the line where points are missing', () => {
    const { times, values } = columns([{ at: 0, v: 1 }, { at: 10, v: 2 }, { at: 60, v: 3 }], 10, read);
    expect(times).toEqual([0, 10, 20, 60]);
    expect(values).toEqual([[1, 2, null, 3]]);
  });

  it('keep unknown values unknown', () => {
    expect(columns([{ at: 0, v: null }], 10, read).values).toEqual([[null]]);
  });
});

describe('time without data', () => {
  it('is hatched before the first point, in gaps and after the last', () => {
    expect(silences([300, 310, 320, 400, 410], 10, 0, 500)).toEqual([
      [0, 300],
      [325, 400],
      [415, 500],
    ]);
  });

  it('is none while points come in time', () => {
    expect(silences([0, 10, 20, 30], 10, 0, 45)).toEqual([]);
  });
});

describe('stacking', () => {
  it('adds each series to those below and keeps gaps', () => {
    expect(stacked([[1, 2, null], [10, 20, null]])).toEqual([
      [1, 2, null],
      [11, 22, null],
    ]);
  });
});

describe('lonely values', () => {
  it('are found, since a line cannot show them', () => {
    expect(isolated([null, 1, null, 2, 3, null, 4])).toEqual([1, 6]);
  });
});
