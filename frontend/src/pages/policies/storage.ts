// The draft survives a look at another page or a reload of this tab; it never leaves the browser.

import type { Document } from '../../lib/document';

const KEY = 'tidegate.policy-draft';

interface StoredDraft {
  author: string;
  version: number;
  document: Document;
  comment: string;
}

/** The stored draft, if `author` made it from `version`: others may sign in on the same tab. */
export function loadDraft(author: string, version: number): StoredDraft | null {
  const text = sessionStorage.getItem(KEY);
  if (text === null) return null;
  const stored = JSON.parse(text) as StoredDraft;
  return stored.author === author && stored.version === version ? stored : null;
}

export function saveDraft(draft: StoredDraft): void {
  sessionStorage.setItem(KEY, JSON.stringify(draft));
}

export function clearDraft(): void {
  sessionStorage.removeItem(KEY);
}
