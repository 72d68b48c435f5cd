// What charts need computed, without a canvas: ticks, columns with gaps, hatched stretches.

import { clock } from './time';

/** Gridlines from 0: at most 4, at round values, covering `max`. */
export function valueTicks(max: number, intervals = 3): number[] {
  const raw = (max > 0 ? max : 1) / intervals;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999) ?? 10 * power;
  const num = Math.max(1, Math.ceil((max > 0 ? max : 1) / step - 1e-9));
  return Array.from({ length: num + 1 }, (_, index) => Number((index * step).toPrecision(10)));
}

/** A tick of a latency's axis: in seconds from one second on or where the objective is long, else in ms. */
export function latencyTick(seconds: number, objectiveS: number): string {
  if (seconds === 0) return '0';
  if (objectiveS >= 0.5 || seconds >= 1) return `${Number(seconds.toPrecision(3))} s`;
  return `${Number((seconds * 1000).toPrecision(3))} ms`;
}

/** Where the label of an instant is centred, so that it stays inside the chart. */
export function markCentre(at: number, from: number, to: number, halfS: number): number {
  return Math.min(Math.max(at, from + halfS), to - halfS);
}

/** Round instants between `from` and `to`, at least `minGapS` apart, and `clearS` away from `avoid` and the edges. */
export function timeTicks(from: number, to: number, minGapS: number, avoid: number | null = null, clearS = minGapS / 4): number[] {
  const steps = [60, 120, 300, 600, 900, 1800, 3600, 7200];
  const step = steps.find((size) => size >= minGapS) ?? 7200;
  const ticks: number[] = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
    const isClear = avoid === null || avoid < from || Math.abs(at - markCentre(avoid, from, to, clearS * 1.75)) >= clearS * 3;
    if (isClear && at - from > clearS && to - at > clearS) ticks.push(at);
  }
  return ticks;
}

export interface Columns {
  times: number[];
  values: (number | null)[][];
}

/** Rows of values by time as columns, with an empty row in each stretch without data, so that lines break there. */
export function columns<T extends { at: number }>(
  points: readonly T[],
  pointS: number,
  read: readonly ((point: T) => number | null)[],
): Columns {
  const result: Columns = { times: [], values: read.map(() => []) };
  let last: number | null = null;
  for (const point of points) {
    if (last !== null && point.at - last > pointS * GAP_POINTS) append(result, last + pointS, () => null);
    append(result, point.at, (index) => read[index]?.(point) ?? null);
    last = point.at;
  }
  return result;
}

function append(result: Columns, at: number, value: (index: number) => number | null): void {
  result.times.push(at);
  result.values.forEach((column, index) => column.push(value(index)));
}

/** A silence longer than this many points is a gap. */
const GAP_POINTS = 2.5;

/** The stretches of [from, to] without data: before the first point, between points, after the last. */
export function silences(times: readonly number[], pointS: number, from: number, to: number): [number, number][] {
  const found: [number, number][] = [];
  let last = from;
  let isFirst = true;
  for (const at of [...times.filter((time) => time > from && time < to), to]) {
    if (at - last > pointS * GAP_POINTS) found.push([isFirst ? last : last + pointS / 2, at]);
    last = at;
    isFirst = false;
  }
  return found;
}

/** Each series on top of those before it. A gap in one is a gap in all. */
export function stacked(values: readonly (readonly (number | null)[])[]): (number | null)[][] {
  let below: readonly (number | null)[] | null = null;
  return values.map((column) => {
    const base: readonly (number | null)[] | null = below;
    const sum = column.map((value, row) => {
      if (value === null) return null;
      return base === null ? value : (base[row] ?? 0) + value;
    });
    below = sum;
    return sum;
  });
}

/** Indices of values without a neighbour: a line cannot show them, a dot can. */
export function isolated(values: ArrayLike<number | null | undefined>): number[] {
  const isGap = (index: number): boolean => values[index] === null || values[index] === undefined;
  return Array.from({ length: values.length }, (_, index) => index).filter(
    (index) => !isGap(index) && isGap(index - 1) && isGap(index + 1),
  );
}

/** The start of a broken promise as the axis writes it. */
export function markLabel(at: number): string {
  return clock(at);
}
