// Figures as the page writes them: 3 significant digits while live, a space before the unit, thousands with a comma.

const integer = new Intl.NumberFormat('en-US', { maximumFractionDigits: 0 });

/** A figure and its unit, apart, so that the unit can be set smaller. */
export interface Figure {
  value: string;
  unit: string;
}

export const UNKNOWN = 'not known';

export function count(value: number): string {
  return integer.format(value);
}

/** 3 significant digits, but never decimals below an integer of 3 digits: 0.35, 4.2, 26.1, 312, 6,840. */
export function significant(value: number, digits = 3): string {
  if (value === 0) return '0';
  // Round first: 0.9996 has the magnitude of 1.00.
  const magnitude = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(digits)))));
  const decimals = Math.max(0, digits - 1 - magnitude);
  return decimals === 0 ? count(value) : value.toFixed(Math.min(decimals, 6));
}

/** A live latency: integers from 10 ms, 3 significant digits from 1 s, minutes from 100 s. */
export function latency(seconds: number | null): Figure {
  if (seconds === null) return { value: '–', unit: '' };
  const ms = seconds * 1000;
  if (ms < 9.95) return { value: ms === 0 ? '0' : ms.toFixed(1), unit: 'ms' };
  if (ms < 999.5) return { value: String(Math.round(ms)), unit: 'ms' };
  return { value: significant(seconds), unit: 's' };
}

/** Like `latency`, but with one digit more where the figure would round onto its threshold without being equal. */
export function latencyBeside(seconds: number, threshold: number): Figure {
  const plain = latency(seconds);
  const limit = latency(threshold);
  const collides = plain.value === limit.value && plain.unit === limit.unit && seconds !== threshold;
  if (!collides) return plain;
  return plain.unit === 's'
    ? { value: significant(seconds, 4), unit: 's' }
    : { value: (seconds * 1000).toFixed(1), unit: 'ms' };
}

export function figure({ value, unit }: Figure): string {
  return unit === '' ? value : `${value} ${unit}`;
}

export function latencyText(seconds: number | null): string {
  return figure(latency(seconds));
}

/** An objective as the operator set it: 800 ms, 3 s, 0.8 s never; no rounding that would change the promise. */
export function objective(seconds: number): string {
  if (seconds < 1) return `${trim(seconds * 1000)} ms`;
  return `${trim(seconds)} s`;
}

function trim(value: number): string {
  const rounded = Number(value.toPrecision(6));
  return rounded >= 1000 ? integer.format(rounded) : String(rounded);
}

/** A share as percent: 91.2 %, 99.95 %; one digit after the point, two above 99.9. */
export function percent(share: number | null, decimals = 1): string {
  if (share === null) return '–';
  const value = share * 100;
  const digits = value > 99.9 && value < 100 ? Math.max(decimals, 2) : decimals;
  return `${Number(floorTo(value, digits).toFixed(digits))} %`;
}

/** A share is rounded down, so that 99.96 % of a promised 100 % never reads as kept. */
function floorTo(value: number, digits: number): number {
  const factor = 10 ** digits;
  return Math.floor(value * factor + 1e-6) / factor;
}

/** A share as whole percent; what is there but rounds to nothing is below 1 %. */
export function wholePercent(share: number | null): string {
  if (share === null) return '–';
  return share > 0 && share < 0.005 ? '< 1 %' : `${Math.round(share * 100)} %`;
}

/** A mean of whole things: 52, but 51.5 where they differ. */
export function mean(value: number): string {
  return Number.isInteger(value) ? count(value) : significant(value);
}

/** A rate: 1,204, 312, 26.1, 0.8, 0.033; few requests a second are no exact figure. */
export function rate(perSecond: number): string {
  if (perSecond >= 100) return count(perSecond);
  return String(Number(perSecond.toPrecision(perSecond < 0.1 ? 2 : 3)));
}

/** Bytes in decimal units: 128 GB, 1.2 GB, 640 MB. */
export function bytes(value: number | null): string {
  if (value === null) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  const step = Math.min(units.length - 1, value < 1 ? 0 : Math.floor(Math.log10(value) / 3));
  return `${significant(value / 1000 ** step)} ${units[step] ?? 'B'}`;
}

export function watts(value: number): string {
  return value >= 1000 ? `${significant(value / 1000)} kW` : `${value < 10 ? significant(value, 2) : count(value)} W`;
}

/** A title inside a sentence: a small letter first, but not in TTFT and its like. */
export function lowered(title: string): string {
  return /^[A-Z]{2}/.test(title) ? title : `${title.charAt(0).toLowerCase()}${title.slice(1)}`;
}

/** "1 worker", "4 workers"; irregular plurals are given. */
export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** "high", "high and normal", "high, normal and low". */
export function list(names: readonly string[]): string {
  if (names.length <= 1) return names[0] ?? '';
  return `${names.slice(0, -1).join(', ')} and ${names[names.length - 1] ?? ''}`;
}
