// Navigation, keys and the one announcement that screen readers hear.

import { Modal, useComputedColorScheme, useMantineColorScheme } from '@mantine/core';
import type { ReactNode } from 'react';
import { useEffect, useRef, useState } from 'react';
import type { Session } from '../api/session';
import { viewOf } from '../live/connection';
import { useLive } from '../live/context';
import { announcement, tabTitle } from '../lib/verdict';
import type { Page } from '../router';
import { go, usePlace } from '../router';
import type { IconName } from './Icon';
import { Icon, Logo } from './Icon';
import { Link } from './Link';

interface Entry {
  page: Page;
  name: string;
  icon: IconName;
  key: string;
}

/** Only what exists; more entries come with their pages. */
const ENTRIES: readonly Entry[] = [
  { page: 'live', name: 'Live', icon: 'live', key: 'l' },
  { page: 'policies', name: 'Policies', icon: 'policy', key: 'p' },
  { page: 'playground', name: 'Playground', icon: 'chat', key: 'c' },
];

export function Frame({ session, onSignOut, children }: { session: Session; onSignOut: () => void; children: ReactNode }) {
  const [showsKeys, setShowsKeys] = useState(false);
  useKeys(() => setShowsKeys(true));
  return (
    <>
      <a className="skip" href="#main">
        Skip to content
      </a>
      <Announcer />
      <div className="app">
        <Side session={session} onSignOut={onSignOut} onKeys={() => setShowsKeys(true)} />
        <div className="content">{children}</div>
      </div>
      <PhoneTabs onSignOut={onSignOut} />
      <KeysDialog opened={showsKeys} onClose={() => setShowsKeys(false)} />
    </>
  );
}

function Side({ session, onSignOut, onKeys }: { session: Session; onSignOut: () => void; onKeys: () => void }) {
  const { page } = usePlace();
  const { snapshot } = useLive();
  return (
    <nav className="side" aria-label="Main">
      <div className="brand">
        <Logo />
        Tidegate
      </div>
      {ENTRIES.map((entry) => (
        <Link key={entry.page} to={`/${entry.page}`} aria-current={page === entry.page ? 'page' : undefined}>
          <Icon name={entry.icon} />
          {entry.name}
          {entry.page === 'policies' && snapshot?.policy_version ? <span className="n">v{snapshot.policy_version}</span> : null}
        </Link>
      ))}
      <div className="who">
        <b>{session.name === '' ? session.username : session.name}</b>
        <br />
        {session.may_operate ? 'operator' : 'may look, not change'} · times in UTC
        <br />
        <button type="button" onClick={onKeys}>
          Keys
        </button>{' '}
        (press <b>?</b>) ·{' '}
        <button type="button" onClick={onSignOut}>
          Sign out
        </button>
      </div>
    </nav>
  );
}

function PhoneTabs({ onSignOut }: { onSignOut: () => void }) {
  const { page } = usePlace();
  return (
    <nav className="tabs" aria-label="Main, phone">
      {ENTRIES.map((entry) => (
        <Link key={entry.page} to={`/${entry.page}`} aria-current={page === entry.page ? 'page' : undefined}>
          <Icon name={entry.icon} />
          {entry.name}
        </Link>
      ))}
      <button type="button" onClick={onSignOut}>
        <Icon name="user" />
        Sign out
      </button>
    </nav>
  );
}

/** Says a change once, when it happens; never the ticking text. Keeps the tab's title in step. */
function Announcer() {
  const live = useLive();
  const { page } = usePlace();
  const isLost = viewOf(live.connection).kind === 'lost';
  const name = ENTRIES.find((entry) => entry.page === page)?.name ?? 'Tidegate';
  const title = tabTitle(live.snapshot, isLost, name);
  useEffect(() => {
    document.title = title;
  }, [title]);
  return (
    <span className="sr" role="status">
      {announcement(live.snapshot, isLost ? (live.snapshot?.at ?? 0) : null)}
    </span>
  );
}

const SEQUENCE_MS = 1000;

/** `g l`, `g p`, `g c` go to a page, `t` changes the theme, `?` shows the keys; never while typing. */
function useKeys(onHelp: () => void): void {
  const startedAt = useRef(-Infinity);
  const scheme = useComputedColorScheme('light');
  const { setColorScheme } = useMantineColorScheme();
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
      const follows = event.timeStamp - startedAt.current < SEQUENCE_MS;
      const entry = follows ? ENTRIES.find((one) => one.key === event.key) : undefined;
      startedAt.current = event.key === 'g' ? event.timeStamp : -Infinity;
      if (entry !== undefined) go(`/${entry.page}`);
      else if (event.key === '?') onHelp();
      else if (event.key === 't') setColorScheme(scheme === 'dark' ? 'light' : 'dark');
    };
    window.addEventListener('keydown', onKey);
    return () => window.removeEventListener('keydown', onKey);
  }, [onHelp, scheme, setColorScheme]);
}

function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

function KeysDialog({ opened, onClose }: { opened: boolean; onClose: () => void }) {
  const rows = [...ENTRIES.map((entry) => [`g ${entry.key}`, entry.name]), ['t', 'Light or dark'], ['?', 'These keys'], ['Esc', 'Close what is open']];
  return (
    <Modal opened={opened} onClose={onClose} title="Keys" size={336}>
      <dl className="keys">
        {rows.map(([keys = '', words]) => (
          <div key={keys} style={{ display: 'contents' }}>
            <dt>
              {keys.split(' ').map((key) => (
                <kbd key={key}>{key}</kbd>
              ))}
            </dt>
            <dd>{words}</dd>
          </div>
        ))}
      </dl>
    </Modal>
  );
}
