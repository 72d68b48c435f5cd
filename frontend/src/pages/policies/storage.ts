// The draft survives a look at another page or a reload of this tab; it never leaves the browser.

import type { Document } from '../../lib/document';

const KEY = 'tidegate.policy-draft';

interface StoredDraft {
  version: number;
  document: Document;
  comment: string;
}

/** The stored draft, if it was made from `version`. */
export function loadDraft(version: number): StoredDraft | null {
  const text = sessionStorage.getItem(KEY);
  if (text === null) return null;
  const stored = JSON.parse(text) as StoredDraft;
  return stored.version === version ? stored : null;
}

export function saveDraft(draft: StoredDraft): void {
  sessionStorage.setItem(KEY, JSON.stringify(draft));
}

export function clearDraft(): void {
  sessionStorage.removeItem(KEY);
}
