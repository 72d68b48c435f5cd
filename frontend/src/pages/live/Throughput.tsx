// Tokens per second, step time and batch limit: three charts on one time axis.

import type { ReactNode } from 'react';
import { useMemo, useState } from 'react';
import type { BatchLimitChange, LiveSnapshot, Point } from '../../api/live';
import { Chart } from '../../components/Chart';
import { Icon } from '../../components/Icon';
import { Panel } from '../../components/Panel';
import type { ChartModel } from '../../components/plot';
import { Term } from '../../components/Term';
import { columns, stacked } from '../../lib/chart';
import type { Figure } from '../../lib/format';
import { count, figure, latencyBeside, latencyText, mean, objective, rate } from '../../lib/format';
import type { PanelState } from '../../lib/panelState';
import { clock, duration } from '../../lib/time';
import { useLiveClock, usePanelState } from './clock';

interface Props {
  snapshot: LiveSnapshot;
  points: readonly Point[];
}

export function Throughput({ snapshot, points }: Props) {
  return (
    <section className="three" aria-label="Throughput, step time and batch limit">
      <Tokens snapshot={snapshot} points={points} />
      <StepTime snapshot={snapshot} points={points} />
      <BatchLimit snapshot={snapshot} points={points} />
    </section>
  );
}

interface ChartPanelProps {
  title: ReactNode;
  state: PanelState;
  value: string;
  /** The figure as it came, with the name that tests and scripts read it by. */
  raw: { name: string; value: number | null };
  label: string;
  height: number;
  model: ChartModel;
  children: ReactNode;
  empty: string;
}

function ChartPanel({ title, state, value, raw, label, height, model, children, empty }: ChartPanelProps) {
  const [asTable, setAsTable] = useState(false);
  const toggle = (
    <button
      type="button"
      className="btn quiet icb sm"
      aria-pressed={asTable}
      aria-label={asTable ? 'Show as a chart' : 'Show as a table'}
      onClick={() => setAsTable(!asTable)}
    >
      <Icon name="table" />
    </button>
  );
  return (
    <Panel title={title} state={state} figure={
        <span className="val" data-figure={raw.name} data-value={raw.value ?? ''}>
          {value}
        </span>
      } tools={toggle} loadingHeight={220} empty={empty}>
      <div className="pb">
        <Chart label={label} height={height} model={model} asTable={asTable} />
        {children}
      </div>
    </Panel>
  );
}

/** What all three charts share; the caller adds its lines. */
function useFrame(): Pick<ChartModel, 'now' | 'spanS' | 'pointS' | 'brokenSince' | 'isStacked' | 'breaching' | 'labels' | 'objective' | 'minMax' | 'intervals'> {
  const { now, spanS, pointS, brokenSince } = useLiveClock();
  const second = Math.floor(now);
  return useMemo(
    () => ({
      now: second,
      spanS,
      pointS,
      brokenSince,
      isStacked: false,
      breaching: null,
      labels: [],
      objective: null,
      minMax: 0,
      intervals: 3,
    }),
    [second, spanS, pointS, brokenSince],
  );
}

function Tokens({ snapshot, points }: Props) {
  const state = usePanelState(snapshot.workers_at ?? snapshot.gateways_at ?? snapshot.at);
  const frame = useFrame();
  const ids = snapshot.classes.map((one) => one.id).join(' ');
  const data = useMemo(
    () => columns(points, frame.pointS, ids.split(' ').map((id) => (point: Point) => point.tokens_per_s[id] ?? 0)),
    [points, frame.pointS, ids],
  );
  const colors = snapshot.classes.map((one) => one.color).join(' ');
  const model = useMemo(
    (): ChartModel => ({
      ...frame,
      times: data.times,
      values: data.values,
      drawn: stacked(data.values),
      series: ids.split(' ').map((name, index) => ({ name, color: `--class-${colors.split(' ')[index] ?? 0}`, width: 1.5, area: 0.35 })),
      isStacked: true,
      tick: thousands,
      format: (value) => `${rate(value)} /s`,
    }),
    [frame, data, ids, colors],
  );
  return (
    <ChartPanel
      title="Tokens generated"
      state={state}
      value={`${rate(snapshot.tokens_per_s)} /s`}
      raw={{ name: 'tokens_per_s', value: snapshot.tokens_per_s }}
      label={`Tokens generated per second by class, last ${duration(frame.spanS)}`}
      height={132}
      model={model}
      empty="No token has been generated yet."
    >
      <div className="legend">
        {snapshot.classes.map((one) => (
          <span key={one.id} data-color={one.color}>
            <i className="sw area" />
            <b>
              {one.id}{' '}
              <span data-figure={`${one.id}.tokens_per_s`} data-value={one.tokens_per_s}>
                {rate(one.tokens_per_s)}
              </span>
            </b>
          </span>
        ))}
      </div>
      <GoodputNote snapshot={snapshot} />
    </ChartPanel>
  );
}

function GoodputNote({ snapshot }: { snapshot: LiveSnapshot }) {
  const { goodput_rps: good, finished_rps: all } = snapshot;
  if (good === null || all === null) return <p className="note">No request has finished in the window.</p>;
  return (
    <p className="note">
      <Term name="goodput">Goodput</Term>: <span data-figure="goodput_rps" data-value={good}>{rate(good)}</span> of{' '}
      <span data-figure="finished_rps" data-value={all}>{rate(all)}</span> requests/s met all their objectives.
    </p>
  );
}

function thousands(value: number): string {
  return value >= 1000 ? `${Number((value / 1000).toPrecision(3))}k` : String(value);
}

function StepTime({ snapshot, points }: Props) {
  const state = usePanelState(snapshot.workers_at ?? snapshot.at);
  const frame = useFrame();
  const data = useMemo(
    () => columns(points, frame.pointS, [(point) => point.step_p50_s, (point) => point.step_p99_s]),
    [points, frame.pointS],
  );
  const tightest = [...snapshot.classes].sort((a, b) => a.objective.tpot_s - b.objective.tpot_s)[0];
  const limit = tightest?.objective.tpot_s ?? null;
  const owner = tightest?.id ?? '';
  const model = useMemo(
    (): ChartModel => ({
      ...frame,
      times: data.times,
      values: data.values,
      drawn: data.values,
      series: [
        { name: 'p50', color: '--ink2', width: 1 },
        { name: 'p99', color: '--ink2', width: 2 },
      ],
      objective: limit === null ? null : { value: limit, label: `${objective(limit)}: ${owner}’s TPOT objective` },
      tick: latencyTick,
      format: latencyText,
    }),
    [frame, data, limit, owner],
  );
  return (
    <ChartPanel
      title={
        <>
          <Term name="step">Step</Term> time
        </>
      }
      state={state}
      value={`p99 ${latencyText(snapshot.step_p99_s)}`}
      raw={{ name: 'step_p99_s', value: snapshot.step_p99_s }}
      label={`Step time, last ${duration(frame.spanS)}`}
      height={132}
      model={model}
      empty="No step has run yet."
    >
      <div className="legend" style={{ '--c': 'var(--ink2)' } as React.CSSProperties}>
        <span>
          <i className="sw" />
          p99 {latencyText(snapshot.step_p99_s)}
        </span>
        <span>
          <i className="sw thin" />
          p50 {latencyText(snapshot.step_p50_s)}
        </span>
      </div>
      <OverheadNote snapshot={snapshot} />
    </ChartPanel>
  );
}

function OverheadNote({ snapshot }: { snapshot: LiveSnapshot }) {
  const overheads = snapshot.workers.flatMap((worker) => (worker.overhead_p50_s === null ? [] : [worker.overhead_p50_s]));
  if (overheads.length === 0) return null;
  return <p className="note">Of each step, {latencyText(Math.max(...overheads))} is the worker’s own, outside the model.</p>;
}

function latencyTick(value: number): string {
  if (value === 0) return '0';
  return value < 1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
}

function BatchLimit({ snapshot, points }: Props) {
  const state = usePanelState(snapshot.workers_at ?? snapshot.at);
  const frame = useFrame();
  const data = useMemo(
    () => columns(points, frame.pointS, [(point) => point.num_running, (point) => point.batch_limit]),
    [points, frame.pointS],
  );
  const model = useMemo(
    (): ChartModel => ({
      ...frame,
      times: data.times,
      values: data.values,
      drawn: data.values,
      series: [
        { name: 'running', color: '--ink3', width: 1, area: 0.18 },
        { name: 'limit', color: '--ink', width: 2, stepped: true },
      ],
      labels: [
        { text: 'running, mean of workers', series: 0 },
        { text: 'limit', series: 1 },
      ],
      tick: String,
      format: mean,
    }),
    [frame, data],
  );
  const limit = snapshot.batch_limit;
  return (
    <ChartPanel
      title={
        <>
          Batch limit<span className="hide-m"> per worker</span>
        </>
      }
      state={state}
      value={limit === null ? '–' : `${mean(limit)} slots`}
      raw={{ name: 'batch_limit', value: limit }}
      label={`Batch limit and running sequences per worker, last ${duration(frame.spanS)}`}
      height={116}
      model={model}
      empty="No worker has reported a batch limit yet."
    >
      <Moves snapshot={snapshot} />
    </ChartPanel>
  );
}

const NUM_MOVES = 3;

function Moves({ snapshot }: { snapshot: LiveSnapshot }) {
  const moves = [...snapshot.limit_changes].sort((a, b) => b.at - a.at).slice(0, NUM_MOVES);
  if (moves.length === 0) return <p className="note">Measured latency has not moved the limit.</p>;
  return (
    <ol className="moves">
      {moves.map((move) => (
        <li key={`${move.at} ${move.worker}`}>
          <time>{clock(move.at)}</time>
          <b>
            {count(move.before)} → {count(move.after)}
          </b>
          <span>{moveWords(move, snapshot.workers.length)}</span>
        </li>
      ))}
    </ol>
  );
}

function moveWords(move: BatchLimitChange, numWorkers: number): string {
  const where = numWorkers > 1 ? `, on ${move.worker}` : '';
  const measured = figure(precise(move.itl_s, move.target_s));
  return `ITL p99 averaged ${measured}, target ${latencyText(move.target_s)}${where}`;
}

/** A tenth of a millisecond more than elsewhere: the figure stands beside the threshold that it crossed. */
function precise(seconds: number, target: number): Figure {
  return seconds < 0.1 ? { value: (seconds * 1000).toFixed(1), unit: 'ms' } : latencyBeside(seconds, target);
}
