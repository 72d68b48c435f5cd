// The bar on top of every page: where you are, how live it is, what time it is in UTC.

import { useComputedColorScheme, useMantineColorScheme } from '@mantine/core';
import type { ReactNode } from 'react';
import { viewOf } from '../live/connection';
import { serverNow, useLive, useLiveClient, useTick } from '../live/context';
import type { LiveState } from '../live/store';
import { plural } from '../lib/format';
import { staleAfterS } from '../lib/panelState';
import { age, duration, utc } from '../lib/time';
import { Icon } from './Icon';
import { Link } from './Link';

export function TopBar({ title, sub, tools }: { title: ReactNode; sub?: ReactNode; tools?: ReactNode }) {
  return (
    <>
      <header className="top">
        <h1>{title}</h1>
        {sub === undefined ? null : <span className="sub opt nw">{sub}</span>}
        <span className="grow" />
        {tools}
        <PolicyPill />
        <LivePill />
        <Clock />
        <ThemeButton />
      </header>
      <ConnectionBar />
    </>
  );
}

function PolicyPill() {
  const { snapshot } = useLive();
  const version = snapshot?.policy_version ?? null;
  if (snapshot === null || version === null) return null;
  const silent = snapshot.workers.filter((worker) => worker.state === 'silent').length;
  return (
    <Link className="pill opt" to="/policies">
      <span>
        Policy{' '}
        <span data-figure="policy_version" data-value={version}>
          v{version}
        </span>
      </span>
      <span className="k">
        on{' '}
        <span data-figure="num_workers_on_policy" data-value={snapshot.num_workers_on_policy}>
          {snapshot.num_workers_on_policy}
        </span>{' '}
        of {plural(snapshot.num_workers, 'worker')}
        {silent === 0 ? '' : `, ${silent} silent`}
      </span>
    </Link>
  );
}

function LivePill() {
  const live = useLive();
  const monotonic = useTick(500);
  const old = live.snapshot === null ? null : Math.max(0, serverNow(live, monotonic) - live.snapshot.at);
  const isOpen = viewOf(live.connection).kind === 'live';
  const isLive = isOpen && (old === null || old <= staleAfterS(live.hello?.interval_s ?? 1));
  return (
    <span className={isLive ? 'pill' : 'pill inverted'} data-testid="live-pill">
      <span className="dot" />
      {pillWords(isLive, old)}
    </span>
  );
}

function pillWords(isLive: boolean, ageS: number | null): string {
  if (ageS === null) return isLive ? 'Live' : 'Connecting';
  return isLive ? `Live, ${age(ageS)} old` : `Not live, ${duration(ageS)} old`;
}

function Clock() {
  const live = useLive();
  const monotonic = useTick(500);
  return <span className="nw">{utc(serverNow(live, monotonic))}</span>;
}

function ThemeButton() {
  const scheme = useComputedColorScheme('light');
  const { setColorScheme } = useMantineColorScheme();
  const other = scheme === 'dark' ? 'light' : 'dark';
  return (
    <button type="button" className="btn quiet icb" aria-label={`Use the ${other} theme`} onClick={() => setColorScheme(other)}>
      <Icon name="theme" />
    </button>
  );
}

/** Shown the moment the connection breaks, on every page that shows live numbers. */
function ConnectionBar() {
  const live = useLive();
  const client = useLiveClient();
  const monotonic = useTick(500);
  const view = viewOf(live.connection);
  if (view.kind !== 'lost') return null;
  return (
    <section className="conn" aria-label="Connection">
      <Icon name="off" />
      <span>
        <b>{lostWords(live, monotonic - view.lostAt)}</b> {knownWords(live)} Attempt {view.attempt}
        {view.retryAt === null ? ' now.' : ` in ${Math.max(1, Math.ceil(view.retryAt - monotonic))} s.`}
      </span>
      <button type="button" onClick={client.retryNow} disabled={view.retryAt === null}>
        Try now
      </button>
    </section>
  );
}

function lostWords(live: LiveState, forS: number): string {
  return live.snapshot === null ? 'The live numbers cannot be reached.' : `Connection lost ${duration(forS)} ago.`;
}

function knownWords(live: LiveState): string {
  if (live.snapshot === null) return 'The workers do not depend on this view.';
  return `You see the last known numbers, from ${utc(live.snapshot.at)}. The workers keep running; only this view is cut off.`;
}
