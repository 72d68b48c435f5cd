// One card per class: what was promised, what was measured, and how much of the error budget is left.

import { useMemo } from 'react';
import type { ClassLive, LiveSnapshot, Metric, Percentile, Point } from '../../api/live';
import { Chart } from '../../components/Chart';
import { Glyph } from '../../components/ClassName';
import { FigureText } from '../../components/FigureText';
import { Icon } from '../../components/Icon';
import { Panel } from '../../components/Panel';
import type { ChartModel } from '../../components/plot';
import { Term } from '../../components/Term';
import { columns, latencyTick } from '../../lib/chart';
import { count, latency, latencyBeside, latencyText, objective, percent, wholePercent } from '../../lib/format';
import type { PanelState } from '../../lib/panelState';
import { isOld } from '../../lib/panelState';
import { duration } from '../../lib/time';
import { budgetShown, budgetSpan, burnLine, isLate, isUndecided, judgedSpanShort, keepsBoth, metricName, promiseLine, promised } from '../../lib/verdict';
import { whyAnchor } from '../../lib/waiting';
import { useLiveClock, usePanelState } from './clock';

const PERCENTILES: readonly Percentile[] = ['p50', 'p95', 'p99'];

export function PromiseCards({ snapshot, points }: { snapshot: LiveSnapshot; points: readonly Point[] }) {
  const state = usePanelState(snapshot.gateways_at ?? snapshot.at, true, 'gateways');
  const isCrowded = snapshot.classes.length > 3;
  const classes = isCrowded ? [...snapshot.classes].sort((a, b) => Number(keepsBoth(a)) - Number(keepsBoth(b))) : snapshot.classes;
  return (
    <section className="promises" aria-label="Promises by class">
      {classes.map((one) => (
        <PromiseCard key={one.id} one={one} points={points} state={state} />
      ))}
    </section>
  );
}

function PromiseCard({ one, points, state }: { one: ClassLive; points: readonly Point[]; state: PanelState }) {
  const { now } = useLiveClock();
  const kept = keepsBoth(one);
  return (
    <Panel
      as="article"
      state={state}
      className={kept ? 'prom' : 'prom broken'}
      title={
        <span className="cname">
          <Glyph color={one.color} />
          {one.id}
        </span>
      }
      sub={<span className="hide-m">rank {one.rank}</span>}
      figure={
        <span className={kept ? 'state' : 'state bad'}>
          <Icon name={!kept ? 'bad' : one.num_judged === 0 || isUndecided(one) ? 'info' : 'ok'} />
          {promiseLine(one, now, isOld(state))}
        </span>
      }
    >
      <div className="two">
        <Half one={one} metric="ttft" points={points} />
        <Half one={one} metric="tpot" points={points} />
      </div>
      <Foot one={one} />
    </Panel>
  );
}

function Half({ one, metric, points }: { one: ClassLive; metric: Metric; points: readonly Point[] }) {
  const model = usePromiseChart(one, metric, points);
  return (
    <div className="met">
      <h3>
        <Term name={metric}>{metricName(metric)}</Term>
        <span>{promised(one, metric)}</span>
      </h3>
      <dl className="pcts">
        {PERCENTILES.map((percentile) => (
          <PercentileFigure key={percentile} one={one} metric={metric} percentile={percentile} />
        ))}
      </dl>
      <Chart
        label={`${one.id} ${metricName(metric)}, last ${duration(model.spanS)}, against ${promised(one, metric)}`}
        height={92}
        axisWidth={34}
        model={model}
      />
    </div>
  );
}

function PercentileFigure({ one, metric, percentile }: { one: ClassLive; metric: Metric; percentile: Percentile }) {
  const isGoverning = percentile === one.objective.governing;
  const value = one[metric][percentile];
  const limit = limitOf(one, metric);
  const shown = value !== null && isGoverning ? latencyBeside(value, limit) : latency(value);
  const late = isLate(one, metric, percentile);
  return (
    <div className={`${isGoverning ? 'gov' : ''} ${late ? 'late' : ''}`}>
      <dt>
        {percentile}
        {isGoverning ? <span className="sr">, governs the promise{late ? ', which is broken' : ''}</span> : null}
      </dt>
      <dd data-figure={`${one.id}.${metric}.${percentile}`} data-value={value ?? ''}>
        <FigureText figure={shown} />
      </dd>
    </div>
  );
}

function limitOf(one: ClassLive, metric: Metric): number {
  return metric === 'ttft' ? one.objective.ttft_s : one.objective.tpot_s;
}

function Foot({ one }: { one: ClassLive }) {
  const { now } = useLiveClock();
  const burn = burnLine(one);
  const left = budgetShown(one, now);
  const isBroken = !keepsBoth(one);
  const burnsFast = isBroken && (one.burn_rate ?? 0) > 1;
  const misses = isBroken && one.attainment !== null && one.attainment < one.objective.target;
  return (
    <dl className={one.judged_since === null ? 'foot' : 'foot fresh'}>
      <div>
        <dt>
          <Term name="attainment">Attainment</Term>, {judgedSpanShort(one)}
        </dt>
        <dd>
          <b className={misses ? 'bad' : ''} data-figure={`${one.id}.attainment`} data-value={one.attainment ?? ''}>
            {percent(one.attainment)}
          </b>{' '}
          <span className="k">of {percent(one.objective.target)}</span>
          <Counts one={one} />
        </dd>
      </div>
      <div>
        <dt>
          <Term name="budget">Error budget</Term> left, {budgetSpan(one, now)}
        </dt>
        <dd>
          <b>{wholePercent(left)}</b>
          {burn === null ? null : <small className={burnsFast ? 'bad' : ''}>{burn}</small>}
          <span className="bar full">
            <i style={{ width: `${Math.max(0, Math.min(1, left ?? 0)) * 100}%` }} />
          </span>
        </dd>
      </div>
    </dl>
  );
}

/** What the share is a share of: one late of three says less than ten of thirty. Those that still wait go before it. */
function Counts({ one }: { one: ClassLive }) {
  if (one.num_judged === 0) return null;
  const judged = (
    <span data-figure={`${one.id}.num_judged`} data-value={one.num_judged}>
      {count(one.num_judged)}
    </span>
  );
  return (
    <span className="counts nw">
      <span data-figure={`${one.id}.num_late`} data-value={one.num_late}>
        {count(one.num_late)}
      </span>{' '}
      late
      {one.num_overdue === 0 ? null : <Overdue one={one} />}
      <span className={one.num_overdue === 0 ? '' : 'sr'}> of {judged}</span>
    </span>
  );
}

function Overdue({ one }: { one: ClassLive }) {
  return (
    <>
      ,{' '}
      <a className="why" href={`#${whyAnchor(one.id)}`} data-figure={`${one.id}.num_overdue`} data-value={one.num_overdue}>
        {count(one.num_overdue)} waiting
      </a>
    </>
  );
}

function usePromiseChart(one: ClassLive, metric: Metric, points: readonly Point[]): ChartModel {
  const { now, spanS, pointS } = useLiveClock();
  const { governing } = one.objective;
  const order = useMemo(() => [...PERCENTILES.filter((name) => name !== governing), governing], [governing]);
  const data = useMemo(
    () => columns(points, pointS, order.map((name) => (point: Point) => point[metric][one.id]?.[name] ?? null)),
    [points, pointS, order, metric, one.id],
  );
  const limit = limitOf(one, metric);
  const second = Math.floor(now);
  return useMemo(
    () => ({
      times: data.times,
      drawn: data.values,
      values: data.values,
      series: order.map((name) => ({
        name,
        color: `--class-${one.color}`,
        width: name === governing ? 2 : 1,
        opacity: name === governing ? 1 : 0.55,
      })),
      isStacked: false,
      now: second,
      spanS,
      pointS,
      tick: (value: number) => latencyTick(value, limit),
      format: latencyText,
      minMax: 0,
      intervals: 2,
      objective: { value: limit, label: objective(limit) },
      breaching: order.length - 1,
      brokenSince: null,
      labels: [],
    }),
    [data, order, one.color, governing, second, spanS, pointS, limit],
  );
}
