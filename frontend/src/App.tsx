// Who is signed in decides what there is to see.

import { useCallback, useEffect, useState } from 'react';
import { ApiError } from './api/http';
import type { Session } from './api/session';
import { currentSession, signOut } from './api/session';
import { Frame } from './components/Frame';
import { FailureNote } from './components/Panel';
import { LiveProvider, useLive } from './live/context';
import { LivePage } from './pages/live/LivePage';
import { PlaygroundPage } from './pages/playground/PlaygroundPage';
import { PoliciesPage } from './pages/policies/PoliciesPage';
import { SignIn } from './pages/SignIn';
import { RightsContext } from './rights';
import { go, usePlace } from './router';

type Who = { kind: 'asking' } | { kind: 'nobody' } | { kind: 'someone'; session: Session } | { kind: 'failed'; error: ApiError };

export function App() {
  const [who, setWho] = useState<Who>({ kind: 'asking' });
  const ask = useCallback(() => {
    currentSession().then(
      (session) => setWho(session === null ? { kind: 'nobody' } : { kind: 'someone', session }),
      (error: unknown) => setWho({ kind: 'failed', error: asApiError(error) }),
    );
  }, []);
  useEffect(ask, [ask]);

  switch (who.kind) {
    case 'asking':
      return <main className="sign-in" aria-busy="true" />;
    case 'failed':
      return <Unreachable error={who.error} onRetry={ask} />;
    case 'nobody':
      return <SignIn onSignedIn={(session) => enter(session, setWho)} />;
    case 'someone':
      return (
        <LiveProvider>
          <SignedIn session={who.session} onLeave={() => setWho({ kind: 'nobody' })} />
        </LiveProvider>
      );
  }
}

function enter(session: Session, setWho: (who: Who) => void): void {
  if (window.location.pathname.startsWith('/sign-in')) go('/live');
  setWho({ kind: 'someone', session });
}

function asApiError(error: unknown): ApiError {
  return error instanceof ApiError ? error : new ApiError(0, 'failed', String(error), true);
}

function SignedIn({ session, onLeave }: { session: Session; onLeave: () => void }) {
  const { page } = usePlace();
  const { refused } = useLive();
  useEffect(() => {
    if (refused) onLeave();
  }, [refused, onLeave]);
  const leave = (): void => {
    signOut().then(onLeave, onLeave);
  };
  return (
    <RightsContext value={session.may_operate}>
      <Frame session={session} onSignOut={leave}>
        {page === 'policies' ? <PoliciesPage session={session} /> : page === 'playground' ? <PlaygroundPage /> : <LivePage />}
      </Frame>
    </RightsContext>
  );
}

function Unreachable({ error, onRetry }: { error: ApiError; onRetry: () => void }) {
  const failure = { what: 'Tidegate does not answer', detail: error.message, id: error.id };
  return (
    <main className="sign-in" id="main">
      <div className="panel">
        <FailureNote failure={failure} onRetry={onRetry} />
      </div>
    </main>
  );
}
