// The page's chart rules on top of uPlot: what is drawn around and over its lines.

import uPlot from 'uplot';
import { isolated, markCentre, markLabel, silences, timeTicks, valueTicks } from '../lib/chart';
import { clock, clockMinutes } from '../lib/time';

export interface ChartSeries {
  name: string;
  /** A custom property: `--class-0`, `--ink2`. */
  color: string;
  width: number;
  /** Opacity of the line. */
  opacity?: number;
  /** Opacity of the area under the line (stacked: down to the series below). */
  area?: number;
  stepped?: boolean;
}

export interface ChartModel {
  times: readonly number[];
  /** One column per series, as drawn (stacked charts: sums). */
  drawn: readonly (readonly (number | null)[])[];
  /** One column per series, as read out. */
  values: readonly (readonly (number | null)[])[];
  series: readonly ChartSeries[];
  isStacked: boolean;
  now: number;
  spanS: number;
  pointS: number;
  tick: (value: number) => string;
  format: (value: number) => string;
  /** At least this much of the axis. */
  minMax: number;
  intervals: number;
  objective: { value: number; label: string } | null;
  /** Index of the series whose part above the objective is filled red. */
  breaching: number | null;
  brokenSince: number | null;
  labels: readonly { text: string; series: number }[];
}

const FONT = "11px 'Inter Variable', system-ui, sans-serif";
const FONT_MARK = "500 11px 'Inter Variable', system-ui, sans-serif";
const AXIS_HEIGHT = 18;
/** Between labels of times: closer on small charts, which have only two or three. */
const TICK_GAP_PX = { small: 40, large: 60 };
const SMALL_PX = 200;
/** Half a label of a time. */
const CLEAR_PX = 15;

type Read = () => ChartModel;
type Paint = (name: string) => string;

/** Options of a uPlot that always draws what `read` gives at that moment. */
export function plotOptions(read: Read, paint: Paint, width: number, height: number, axisWidth: number): uPlot.Options {
  const model = read();
  return {
    width,
    height,
    padding: [10, 1, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: 'page' }, y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: {
      x: { time: true, range: () => [read().now - read().spanS, read().now] },
      y: { range: () => [0, topOf(read())] },
    },
    axes: [timeAxis(read, paint), valueAxis(read, paint, axisWidth)],
    series: [{}, ...model.series.map((one) => plotSeries(one, paint))],
    bands: model.isStacked ? stackBands(model, paint) : [],
    hooks: { drawClear: [(u) => drawHatch(u, read(), paint)], draw: [(u) => drawOver(u, read(), paint)] },
  };
}

function topOf(model: ChartModel): number {
  const ticks = ticksOf(model);
  return ticks[ticks.length - 1] ?? 1;
}

function ticksOf(model: ChartModel): number[] {
  const from = model.now - model.spanS;
  let max = Math.max(model.minMax, (model.objective?.value ?? 0) * 1.2);
  model.times.forEach((at, row) => {
    if (at < from) return;
    for (const column of model.drawn) max = Math.max(max, column[row] ?? 0);
  });
  return valueTicks(max, model.intervals);
}

function timeAxis(read: Read, paint: Paint): uPlot.Axis {
  return {
    size: AXIS_HEIGHT,
    gap: 4,
    font: FONT,
    stroke: () => paint('--ink3'),
    grid: { show: false },
    ticks: { show: false },
    splits: (u) => {
      const { now, spanS, brokenSince } = read();
      const widthPx = Math.max(1, u.bbox.width / uPlot.pxRatio);
      const gap = widthPx < SMALL_PX ? TICK_GAP_PX.small : TICK_GAP_PX.large;
      const perPx = spanS / widthPx;
      return timeTicks(now - spanS, now, perPx * gap, brokenSince, perPx * CLEAR_PX);
    },
    values: (_, splits) => splits.map(clockMinutes),
  };
}

/** Digits and letters of the axis font are about this wide. */
const GLYPH_PX = 6.2;

function valueAxis(read: Read, paint: Paint, minSize: number): uPlot.Axis {
  return {
    size: (_, values) => Math.max(minSize, ...((values as string[] | null) ?? []).map((text) => text.length * GLYPH_PX + 10)),
    gap: 6,
    font: FONT,
    stroke: () => paint('--ink3'),
    grid: { stroke: () => paint('--line'), width: 1 },
    ticks: { show: false },
    splits: () => ticksOf(read()),
    values: (_, splits) => splits.map((value) => read().tick(value)),
  };
}

function plotSeries(one: ChartSeries, paint: Paint): uPlot.Series {
  const color = (): string => withAlpha(paint(one.color), one.opacity ?? 1);
  const stepped = uPlot.paths.stepped?.({ align: 1 });
  return {
    width: one.width,
    stroke: color,
    spanGaps: false,
    ...(one.area === undefined ? {} : { fill: () => withAlpha(paint(one.color), one.area ?? 0) }),
    ...(one.stepped === true && stepped !== undefined ? { paths: stepped } : {}),
    points: {
      show: true,
      size: Math.max(3, one.width * 2),
      width: 0,
      fill: color,
      stroke: color,
      filter: (u, index) => isolated(u.data[index] ?? []),
    },
  };
}

/** In a stack only the lowest series reaches down to zero. */
function stackBands(model: ChartModel, paint: Paint): uPlot.Band[] {
  return model.series.flatMap((one, index) =>
    index === 0 ? [] : [{ series: [index + 1, index] as uPlot.Band.Bounds, fill: () => withAlpha(paint(one.color), one.area ?? 0) }],
  );
}

/** `#rrggbb` with an opacity. */
function withAlpha(color: string, alpha: number): string {
  return alpha >= 1 ? color : `${color}${Math.round(alpha * 255).toString(16).padStart(2, '0')}`;
}

function drawHatch(u: uPlot, model: ChartModel, paint: Paint): void {
  const { ctx, bbox } = u;
  for (const [from, to] of silences(model.times, model.pointS, model.now - model.spanS, model.now)) {
    const left = u.valToPos(from, 'x', true);
    const width = u.valToPos(to, 'x', true) - left;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, bbox.top, width, bbox.height);
    ctx.clip();
    ctx.strokeStyle = withAlpha(paint('--ctl'), 0.28);
    ctx.lineWidth = uPlot.pxRatio;
    ctx.beginPath();
    const step = 6 * uPlot.pxRatio;
    for (let x = left - bbox.height; x < left + width; x += step) {
      ctx.moveTo(x, bbox.top + bbox.height);
      ctx.lineTo(x + bbox.height, bbox.top);
    }
    ctx.stroke();
    ctx.restore();
  }
}

function drawOver(u: uPlot, model: ChartModel, paint: Paint): void {
  if (model.breaching !== null && model.objective !== null) drawBreach(u, model.breaching, model.objective.value, paint);
  if (model.objective !== null) drawObjective(u, model.objective, paint);
  if (model.brokenSince !== null) drawMark(u, model.brokenSince, paint);
  for (const label of model.labels) drawLabel(u, model, label, paint);
}

function drawBreach(u: uPlot, series: number, objective: number, paint: Paint): void {
  const { ctx, bbox } = u;
  const floor = u.valToPos(objective, 'y', true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, Math.max(0, floor - bbox.top));
  ctx.clip();
  ctx.fillStyle = withAlpha(paint('--red'), 0.16);
  const times = u.data[0];
  const values = u.data[series + 1] ?? [];
  let start: number | null = null;
  for (let row = 0; row <= times.length; row += 1) {
    const isGap = row === times.length || values[row] === null || values[row] === undefined;
    if (!isGap) start ??= row;
    else if (start !== null) {
      fillRun(u, times, values, start, row, floor);
      start = null;
    }
  }
  ctx.restore();
}

function fillRun(u: uPlot, times: ArrayLike<number>, values: ArrayLike<number | null | undefined>, from: number, to: number, floor: number): void {
  const x = (row: number): number => u.valToPos(times[row] ?? 0, 'x', true);
  u.ctx.beginPath();
  u.ctx.moveTo(x(from), floor);
  for (let row = from; row < to; row += 1) u.ctx.lineTo(x(row), u.valToPos(values[row] ?? 0, 'y', true));
  u.ctx.lineTo(x(to - 1), floor);
  u.ctx.fill();
}

function drawObjective(u: uPlot, objective: { value: number; label: string }, paint: Paint): void {
  const { ctx, bbox } = u;
  const y = Math.round(u.valToPos(objective.value, 'y', true)) + 0.5;
  dashed(u, paint('--ink'), [4, 3], bbox.left, y, bbox.left + bbox.width, y);
  const px = uPlot.pxRatio;
  const isHigh = y - bbox.top < 10 * px;
  ctx.textAlign = 'left';
  halo(u, objective.label, bbox.left + 4 * px, isHigh ? y + 13 * px : y - 4 * px, paint, FONT_MARK);
}

function drawMark(u: uPlot, at: number, paint: Paint): void {
  const { ctx, bbox } = u;
  const x = Math.round(u.valToPos(at, 'x', true)) + 0.5;
  if (x < bbox.left || x > bbox.left + bbox.width) return;
  dashed(u, paint('--ctl'), [2, 2], x, bbox.top, x, bbox.top + bbox.height);
  const px = uPlot.pxRatio;
  const centre = markCentre(x, bbox.left, bbox.left + bbox.width, 26 * px);
  ctx.textAlign = 'center';
  halo(u, markLabel(at), centre, bbox.top + bbox.height + 14 * px, paint, FONT_MARK);
}

function drawLabel(u: uPlot, model: ChartModel, label: { text: string; series: number }, paint: Paint): void {
  const values = model.drawn[label.series] ?? [];
  const row = model.times.findIndex((at, index) => at >= model.now - model.spanS && typeof values[index] === 'number');
  const value = values[row];
  if (row < 0 || typeof value !== 'number') return;
  const px = uPlot.pxRatio;
  const start = Math.max(u.bbox.left, u.valToPos(model.times[row] ?? 0, 'x', true)) + 4 * px;
  const y = u.valToPos(value, 'y', true);
  const isClipped = y - 16 * px < u.bbox.top;
  const isBelow = isClipped || (label.series === 0 && y + 16 * px < u.bbox.top + u.bbox.height);
  const end = u.bbox.left + u.bbox.width;
  const fits = start + label.text.length * GLYPH_PX * px < end;
  u.ctx.textAlign = fits ? 'left' : 'right';
  halo(u, label.text, fits ? start : end, isBelow ? y + 14 * px : y - 5 * px, paint, FONT);
}

function dashed(u: uPlot, color: string, dash: number[], x1: number, y1: number, x2: number, y2: number): void {
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = color;
  ctx.lineWidth = uPlot.pxRatio;
  ctx.setLineDash(dash.map((length) => length * uPlot.pxRatio));
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.lineTo(x2, y2);
  ctx.stroke();
  ctx.restore();
}

/** Text with a rim in the panel's colour, readable over lines. */
function halo(u: uPlot, text: string, x: number, y: number, paint: Paint, font: string): void {
  const { ctx } = u;
  ctx.save();
  ctx.font = scaled(font);
  ctx.lineJoin = 'round';
  ctx.textBaseline = 'alphabetic';
  ctx.lineWidth = 4 * uPlot.pxRatio;
  ctx.strokeStyle = paint('--surface');
  ctx.strokeText(text, x, y);
  ctx.fillStyle = paint('--ink');
  ctx.fillText(text, x, y);
  ctx.restore();
}

function scaled(font: string): string {
  return font.replace('11px', `${11 * uPlot.pxRatio}px`);
}

/** What the cursor's box says at one row. */
export function readoutText(model: ChartModel, row: number): string {
  const at = model.times[row];
  if (at === undefined) return '';
  const lines = model.series.map((one, index) => {
    const value = model.values[index]?.[row];
    return `${one.name}  ${typeof value === 'number' ? model.format(value) : 'no data'}`;
  });
  return [`${clock(at)} UTC`, ...lines].join('\n');
}
