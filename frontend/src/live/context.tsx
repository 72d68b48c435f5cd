// The live state for React: one client for the whole page, one shared clock for everything that shows an age.

import type { ReactNode } from 'react';
import { createContext, useContext, useEffect, useMemo, useState, useSyncExternalStore } from 'react';
import { LiveClient, liveUrl, monotonicS } from './client';
import type { LiveState } from './store';

const ClientContext = createContext<LiveClient | null>(null);

export function LiveProvider({ children }: { children: ReactNode }) {
  const client = useMemo(() => new LiveClient(liveUrl(window.location)), []);
  useEffect(() => {
    client.start();
    return () => client.stop();
  }, [client]);
  return <ClientContext value={client}>{children}</ClientContext>;
}

export function useLiveClient(): LiveClient {
  const client = useContext(ClientContext);
  if (client === null) throw new Error('useLiveClient needs a LiveProvider above it');
  return client;
}

export function useLive(): LiveState {
  const client = useLiveClient();
  return useSyncExternalStore(client.subscribe, client.getState);
}

/** The browser's monotonic clock in seconds, read again every `everyMs`; text that ages re-renders, nothing else. */
export function useTick(everyMs: number): number {
  const [now, setNow] = useState(monotonicS);
  useEffect(() => {
    const timer = setInterval(() => setNow(monotonicS()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

/**
 * Now on the server's clock, in seconds since the epoch; this machine's clock before any message. A message is newer
 * than the last tick: without it, fresh numbers would seem to come from the future.
 */
export function serverNow(state: LiveState, tick: number): number {
  return state.clockOffsetS === null ? Date.now() / 1000 : Math.max(tick, state.receivedAt) + state.clockOffsetS;
}
