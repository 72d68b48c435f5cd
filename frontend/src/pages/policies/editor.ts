// The draft and everything that happens to it, behind one hook.

import { useCallback, useEffect, useEffectEvent, useMemo, useState } from 'react';
import type { Mistake } from '../../api/http';
import { ApiError } from '../../api/http';
import type { PolicyVersion } from '../../api/policies';
import { activePolicy, publish, validate } from '../../api/policies';
import type { Change, Document, Json } from '../../lib/document';
import { changesBetween, rebased, reverted, withValue } from '../../lib/document';
import { localMistakes, merged } from '../../lib/mistakes';
import type { Field } from '../../lib/schema';
import { monotonicS } from '../../live/client';
import { clearDraft, loadDraft, saveDraft } from './storage';

export type Check = { kind: 'checking' } | { kind: 'checked' } | { kind: 'failed'; message: string };

export interface Published {
  version: number;
  /** The browser's monotonic clock when publishing was asked for. */
  askedAt: number;
}

export interface Editor {
  base: PolicyVersion;
  draft: Document;
  comment: string;
  changes: Change[];
  mistakes: Mistake[];
  check: Check;
  /** Another version was published meanwhile. */
  newer: PolicyVersion | null;
  isPublishing: boolean;
  problem: string | null;
  note: string | null;
  set: (path: string, value: Json) => void;
  edit: (change: (draft: Document) => Document) => void;
  setComment: (comment: string) => void;
  revert: (change: Change) => void;
  discard: () => void;
  moveOntoNewer: () => void;
  publish: () => void;
}

interface Options {
  /** Who drafts. */
  username: string;
  base: PolicyVersion;
  perClass: readonly Field[];
  shared: readonly Field[];
  /** The version that the workers' view says is active. */
  liveVersion: number | null;
  /** Whether the control plane is heard; when it is back, the draft is checked again. */
  isLive: boolean;
  onBase: (base: PolicyVersion) => void;
  onPublished: (published: Published) => void;
}

export function useEditor(options: Options): Editor {
  const { username, base, onBase } = options;
  const stored = useMemo(() => loadDraft(username, base.version), [username, base.version]);
  const [draft, setDraft] = useState<Document>(stored?.document ?? base.document);
  const [comment, setComment] = useState(stored?.comment ?? '');
  const [note, setNote] = useState<string | null>(null);
  const changes = useMemo(() => changesBetween(base.document, draft), [base.document, draft]);
  const { mistakes, check, addMistakes } = useMistakes(draft, options);
  const [newer, setNewer] = useState<PolicyVersion | null>(null);
  const adopt = (version: PolicyVersion): void => {
    setDraft(version.document);
    setNewer(null);
    onBase(version);
  };
  useNewerVersion(base.version, options.liveVersion, (version) => {
    if (changes.length === 0) adopt(version);
    else setNewer(version);
  });

  useEffect(() => {
    if (changes.length === 0 && comment === '') clearDraft();
    else saveDraft({ author: username, version: base.version, document: draft, comment });
  }, [username, base.version, changes.length, comment, draft]);

  const finish = (published: PolicyVersion): void => {
    clearDraft();
    setDraft(published.document);
    setComment('');
    setNote(null);
    onBase(published);
  };
  const publishing = usePublishing({ ...options, draft, comment, setNewer, addMistakes, finish });

  return {
    base,
    draft,
    comment,
    changes,
    mistakes,
    check,
    newer: newer !== null && newer.version > base.version ? newer : null,
    ...publishing,
    note,
    set: useCallback((path, value) => setDraft((now) => withValue(now, path, value)), []),
    edit: setDraft,
    setComment,
    revert: (change) => setDraft(reverted(base.document, draft, change)),
    discard: () => {
      setComment('');
      setNote(null);
      if (newer === null) setDraft(base.document);
      else adopt(newer);
    },
    moveOntoNewer: () => {
      if (newer === null) return;
      const result = rebased(base.document, draft, newer.document);
      setDraft(result.document);
      setNote(rebaseNote(result.conflicts.length, result.dropped.length, newer.version));
      setNewer(null);
      onBase(newer);
    },
  };
}

function rebaseNote(numConflicts: number, numDropped: number, version: number): string {
  const parts = [`Your changes now stand on v${version}.`];
  if (numConflicts > 0) parts.push(`${numConflicts} of them change what v${version} had changed too; yours are kept and listed.`);
  if (numDropped > 0) parts.push(`${numDropped} concerned a class that v${version} no longer has, and were dropped.`);
  return parts.join(' ');
}

const DEBOUNCE_MS = 300;

function useMistakes(draft: Document, { perClass, shared, isLive }: Options) {
  const [server, setServer] = useState<readonly Mistake[]>([]);
  const [last, setLast] = useState<{ draft: Document; check: Check } | null>(null);
  useEffect(() => {
    const abort = new AbortController();
    const timer = setTimeout(() => {
      validate(draft, abort.signal).then(
        (mistakes) => {
          setServer(mistakes);
          setLast({ draft, check: { kind: 'checked' } });
        },
        (error: unknown) => {
          if (!abort.signal.aborted) setLast({ draft, check: { kind: 'failed', message: messageOf(error) } });
        },
      );
    }, DEBOUNCE_MS);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [draft, isLive]);
  const check: Check = last?.draft === draft ? last.check : { kind: 'checking' };
  const mistakes = useMemo(() => merged(localMistakes(draft, perClass, shared), server), [draft, perClass, shared, server]);
  return { mistakes, check, addMistakes: setServer };
}

/** Tells once per version that another one than the base has become active. */
function useNewerVersion(baseVersion: number, liveVersion: number | null, onNewer: (newer: PolicyVersion) => void): void {
  const found = useEffectEvent(onNewer);
  useEffect(() => {
    if (liveVersion === null || liveVersion <= baseVersion) return;
    const abort = new AbortController();
    activePolicy(abort.signal).then(
      (active) => {
        if (active.version > baseVersion) found(active);
      },
      () => undefined, // publishing will say 412, and ask again
    );
    return () => abort.abort();
  }, [baseVersion, liveVersion]);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

interface PublishingOptions extends Options {
  draft: Document;
  comment: string;
  setNewer: (newer: PolicyVersion) => void;
  addMistakes: (mistakes: readonly Mistake[]) => void;
  finish: (published: PolicyVersion) => void;
}

function usePublishing({ base, draft, comment, setNewer, addMistakes, onPublished, finish }: PublishingOptions) {
  const [isPublishing, setIsPublishing] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);

  const failed = async (error: unknown): Promise<void> => {
    if (error instanceof ApiError && error.status === 412) setNewer(await activePolicy());
    else if (error instanceof ApiError && error.mistakes.length > 0) addMistakes(error.mistakes);
    else setProblem(messageOf(error));
  };

  const run = async (): Promise<void> => {
    setIsPublishing(true);
    setProblem(null);
    const askedAt = monotonicS();
    try {
      const published = await publish(draft, comment, base.version);
      onPublished({ version: published.version, askedAt });
      finish(published);
    } catch (error) {
      await failed(error).catch((second: unknown) => setProblem(messageOf(second)));
    } finally {
      setIsPublishing(false);
    }
  };

  return { isPublishing, problem, publish: () => void run() };
}
