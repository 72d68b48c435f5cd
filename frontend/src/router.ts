// The client's routes. The server answers each of them with the same page.

import { useSyncExternalStore } from 'react';

export const PAGES = ['live', 'policies', 'playground'] as const;
export type Page = (typeof PAGES)[number];

export interface Place {
  page: Page | 'sign-in';
  /** What follows `#`: a field of the policy form. */
  anchor: string;
}

const CHANGED = 'tidegate:place';

export function placeOf(pathname: string, hash: string): Place {
  const first = pathname.split('/')[1] ?? '';
  const page = first === 'sign-in' || PAGES.some((known) => known === first) ? (first as Place['page']) : 'live';
  return { page, anchor: decoded(hash.replace(/^#/, '')) };
}

/** A fragment that nobody could have encoded leads to no field, and must not take the page down. */
function decoded(anchor: string): string {
  try {
    return decodeURIComponent(anchor);
  } catch {
    return '';
  }
}

/** Another page opens at its top; a place on it is found by who shows it. */
export function go(path: string): void {
  const isElsewhere = new URL(path, window.location.href).pathname !== window.location.pathname;
  window.history.pushState(null, '', path);
  window.dispatchEvent(new Event(CHANGED));
  if (isElsewhere) window.scrollTo(0, 0);
}

function subscribe(listener: () => void): () => void {
  const events = ['popstate', 'hashchange', CHANGED];
  for (const name of events) window.addEventListener(name, listener);
  return () => {
    for (const name of events) window.removeEventListener(name, listener);
  };
}

export function usePlace(): Place {
  const url = useSyncExternalStore(subscribe, () => window.location.pathname + window.location.hash);
  const [pathname = '', hash = ''] = url.split('#');
  return placeOf(pathname, hash);
}
