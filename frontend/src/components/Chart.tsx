// A time chart by the page's rules, with a table of the same height behind a switch.

import { useComputedColorScheme } from '@mantine/core';
import { useEffect, useRef } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { clock } from '../lib/time';
import type { ChartModel } from './plot';
import { plotOptions, readoutText } from './plot';
import { cancelRedraw, scheduleRedraw } from './redraw';

export interface ChartProps {
  /** What the chart shows, for those who do not see it. */
  label: string;
  height: number;
  model: ChartModel;
  asTable?: boolean;
  axisWidth?: number;
}

export function Chart({ label, height, model, asTable = false, axisWidth = 40 }: ChartProps) {
  if (asTable) return <ChartTable label={label} height={height} model={model} />;
  return <Canvas label={label} height={height} model={model} axisWidth={axisWidth} />;
}

function Canvas({ label, height, model, axisWidth }: Omit<Required<ChartProps>, 'asTable'>) {
  const host = useRef<HTMLDivElement>(null);
  const readout = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(model);
  const scheme = useComputedColorScheme('light');
  const shape = model.series.map((one) => `${one.name}${one.color}${one.width}`).join('|');

  useEffect(() => {
    const element = host.current;
    if (element === null) return;
    const paint = (name: string): string => getComputedStyle(element).getPropertyValue(name).trim();
    const options = plotOptions(() => latest.current, paint, element.clientWidth, height, axisWidth);
    options.hooks = { ...options.hooks, setCursor: [(u) => showReadout(u, readout.current, latest.current)] };
    const made = new uPlot(options, dataOf(latest.current), element);
    plot.current = made;
    const observer = new ResizeObserver(() => {
      if (element.clientWidth > 0) scheduleRedraw(observer, () => made.setSize({ width: element.clientWidth, height }));
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      cancelRedraw(observer);
      cancelRedraw(made);
      made.destroy();
      plot.current = null;
    };
  }, [height, axisWidth, shape, scheme]);

  useEffect(() => {
    latest.current = model;
    const made = plot.current;
    if (made !== null) scheduleRedraw(made, () => made.setData(dataOf(latest.current)));
  }, [model]);

  return (
    <div className="chart" role="img" aria-label={label} style={{ height }}>
      <div ref={host} />
      <div className="readout" ref={readout} aria-hidden="true" />
    </div>
  );
}

function dataOf(model: ChartModel): uPlot.AlignedData {
  return [[...model.times], ...model.drawn.map((column) => [...column])];
}

function showReadout(u: uPlot, box: HTMLDivElement | null, model: ChartModel): void {
  if (box === null) return;
  const { idx, left = -1 } = u.cursor;
  const isHere = left >= 0 && typeof idx === 'number' && u.over.matches(':hover');
  box.style.display = isHere ? 'block' : 'none';
  if (!isHere) return;
  box.textContent = readoutText(model, idx);
  const x = left + u.bbox.left / uPlot.pxRatio + 12;
  const flips = x + box.offsetWidth > u.width;
  box.style.left = `${Math.max(0, flips ? x - 24 - box.offsetWidth : x)}px`;
}

function ChartTable({ label, height, model }: { label: string; height: number; model: ChartModel }) {
  const from = model.now - model.spanS;
  const rows = model.times
    .map((at, row) => ({ at, row }))
    .filter(({ at }) => at >= from)
    .reverse();
  return (
    <div className="chart-table" style={{ height }} tabIndex={0} role="region" aria-label={`${label}, as a table`}>
      <table>
        <thead>
          <tr>
            <th>Time (UTC)</th>
            {model.series.map((one) => (
              <th key={one.name} className="r">
                {one.name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ at, row }) => (
            <tr key={at}>
              <td>{clock(at)}</td>
              {model.series.map((one, index) => (
                <td key={one.name} className="r">
                  {valueText(model, index, row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function valueText(model: ChartModel, series: number, row: number): string {
  const value = model.values[series]?.[row];
  return typeof value === 'number' ? model.format(value) : 'no data';
}
