import { beforeEach, describe, expect, it, vi } from 'vitest';
import { loadDraft, saveDraft } from './storage';

const document = { classes: [], default_class: 'high', retired: {} };

describe('a stored draft', () => {
  beforeEach(() => {
    const stored = new Map<string, string>();
    vi.stubGlobal('sessionStorage', {
      getItem: (key: string) => stored.get(key) ?? null,
      setItem: (key: string, value: string) => void stored.set(key, value),
    });
    saveDraft({ author: 'ines', version: 41, document, comment: 'More for high' });
  });

  it('is found again by who made it', () => {
    expect(loadDraft('ines', 41)?.comment).toBe('More for high');
  });

  it('is not shown to somebody else who signs in on the same tab', () => {
    expect(loadDraft('bo', 41)).toBeNull();
  });

  it('is not laid upon another version', () => {
    expect(loadDraft('ines', 42)).toBeNull();
  });
});
