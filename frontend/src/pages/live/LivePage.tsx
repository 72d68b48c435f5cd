// The Live page: the promise first, then the way of the requests, then the machines.

import { useMemo, useState } from 'react';
import type { LiveSnapshot, Point } from '../../api/live';
import { Panel } from '../../components/Panel';
import { Segments } from '../../components/Segments';
import { TopBar } from '../../components/TopBar';
import { viewOf } from '../../live/connection';
import { serverNow, useLive, useTick } from '../../live/context';
import { workerIntervalS } from '../../lib/panelState';
import type { LiveState } from '../../live/store';
import { plural } from '../../lib/format';
import type { LiveClock } from './clock';
import { LiveClockContext } from './clock';
import { Decisions } from './Decisions';
import { FirstSteps } from './FirstSteps';
import { Energy, Workers } from './Fleet';
import { Lanes } from './Lanes';
import { PromiseCards } from './PromiseCards';
import { Throughput } from './Throughput';
import { AllDrain, SilentWorkers, VerdictPanel } from './VerdictPanel';
import { WhoWaits } from './WhoWaits';

const SPANS = [
  ['900', '15 min'],
  ['3600', '1 h'],
  ['21600', '6 h'],
] as const;
type Span = (typeof SPANS)[number][0];

export function LivePage() {
  const live = useLive();
  const monotonic = useTick(500);
  const [span, setSpan] = useState<Span>('900');
  const clock = clockOf(live, serverNow(live, monotonic), Number(span));
  return (
    <LiveClockContext value={clock}>
      <TopBar
        title="Live"
        sub={subtitle(live)}
        tools={<Segments label="Time shown in charts" className="opt" choices={SPANS} value={span} onChange={setSpan} />}
      />
      <main id="main">{live.snapshot === null ? <Loading /> : <Content snapshot={live.snapshot} points={live.points} />}</main>
    </LiveClockContext>
  );
}

function subtitle(live: LiveState): string {
  if (live.hello === null) return '';
  return live.snapshot === null ? live.hello.model : `${live.hello.model} · ${plural(live.snapshot.num_workers, 'worker')}`;
}

function clockOf(live: LiveState, now: number, spanS: number): LiveClock {
  const verdict = live.snapshot?.verdict;
  const intervalS = live.hello?.interval_s ?? 1;
  return {
    now,
    connection: viewOf(live.connection).kind,
    intervalS,
    workerIntervalS: workerIntervalS(intervalS, live.snapshot?.step_p99_s ?? null),
    pointS: live.hello?.point_s ?? 10,
    spanS,
    loaded: live.snapshot !== null,
    brokenSince: verdict?.kind === 'broken' ? verdict.since : null,
  };
}

function Content({ snapshot, points }: { snapshot: LiveSnapshot; points: readonly Point[] }) {
  const isUnused = useMemo(() => isFresh(snapshot, points), [snapshot, points]);
  if (isUnused) {
    return (
      <>
        <AllDrain snapshot={snapshot} />
        <SilentWorkers snapshot={snapshot} />
        <FirstSteps snapshot={snapshot} />
        <Workers snapshot={snapshot} points={points} />
      </>
    );
  }
  return (
    <>
      <AllDrain snapshot={snapshot} />
      <SilentWorkers snapshot={snapshot} />
      <VerdictPanel snapshot={snapshot} />
      <PromiseCards snapshot={snapshot} points={points} />
      <Lanes snapshot={snapshot} />
      <Throughput snapshot={snapshot} points={points} />
      <section className="split" aria-label="Workers and energy">
        <Workers snapshot={snapshot} points={points} />
        <Energy snapshot={snapshot} />
      </section>
      <WhoWaits snapshot={snapshot} />
      <Decisions snapshot={snapshot} />
    </>
  );
}

/** No request has ever been seen: there is nothing to chart, but something to say. */
export function isFresh(snapshot: LiveSnapshot, points: readonly Point[]): boolean {
  const hasPast = points.some((point) => Object.values(point.tokens_per_s).some((value) => value > 0));
  const hasWork = snapshot.num_running + snapshot.num_waiting + snapshot.num_parked > 0;
  return !hasPast && !hasWork && snapshot.verdict.kind === 'no_traffic' && snapshot.classes.every((one) => one.num_judged === 0);
}

const LOADING = { kind: 'loading' } as const;

function Loading() {
  return (
    <>
      <section className="panel" style={{ height: 48 }} aria-busy="true" aria-label="Verdict, loading" />
      <section className="promises" aria-label="Promises by class">
        {['one', 'two', 'three'].map((key) => (
          <Panel key={key} title="Promise" state={LOADING} loadingHeight={222}>
            {null}
          </Panel>
        ))}
      </section>
      <Panel title="From queue to device" state={LOADING} loadingHeight={320}>
        {null}
      </Panel>
      <section className="three" aria-label="Throughput, step time and batch limit">
        {['Tokens generated', 'Step time', 'Batch limit per worker'].map((title) => (
          <Panel key={title} title={title} state={LOADING} loadingHeight={220}>
            {null}
          </Panel>
        ))}
      </section>
    </>
  );
}
