// The operator's trial of this draft: what there is to try it on, how far it is, what came of it.

import { useCallback, useEffect, useState } from 'react';
import { ApiError } from '../../api/http';
import type { Traffic, Trial } from '../../api/trials';
import { cancelTrial, newestTrial, recordedTraffic, startTrial, trialOf } from '../../api/trials';
import { changesBetween } from '../../lib/document';
import type { Editor } from './editor';

const POLL_MS = 1000;
const MAX_SILENT = 5;

export interface TrialView {
  traffic: Traffic | null;
  trial: Trial | null;
  isRunning: boolean;
  isStarting: boolean;
  problem: string | null;
  /** How many fields of the draft changed since; 0 while the result is about this very draft. */
  numChangedSince: number;
  start: (windowS: number | null) => void;
  cancel: () => void;
}

export function isOpen(trial: Trial | null): boolean {
  return trial?.state === 'queued' || trial?.state === 'running';
}

export function useTrial(editor: Editor, username: string): TrialView {
  const { base, draft } = editor;
  const [traffic, setTraffic] = useState<Traffic | null>(null);
  const [known, setTrial] = useState<Trial | null>(null);
  const [isStarting, setIsStarting] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);
  const trial = known?.base_version === base.version ? known : null;
  const fail = useCallback((error: unknown) => setProblem(messageOf(error)), []);
  const hasDraft = editor.changes.length > 0;

  useEffect(() => {
    if (!hasDraft) return;
    const abort = new AbortController();
    const unlessAborted = (error: unknown): void => {
      if (!abort.signal.aborted) fail(error);
    };
    recordedTraffic(abort.signal).then(setTraffic, unlessAborted);
    newestTrial(username, base.version, abort.signal).then((found) => setTrial((now) => now ?? found), unlessAborted);
    return () => abort.abort();
  }, [hasDraft, username, base.version, fail]);
  usePolling(isOpen(trial) ? (trial?.id ?? null) : null, setTrial, fail);

  const start = async (windowS: number | null): Promise<void> => {
    setIsStarting(true);
    setProblem(null);
    try {
      setTrial(await startTrial(draft, windowS));
    } catch (error) {
      fail(error);
    } finally {
      setIsStarting(false);
    }
  };
  return {
    traffic,
    trial,
    isRunning: isOpen(trial),
    isStarting,
    problem,
    numChangedSince: trial === null ? 0 : changesBetween(trial.document, draft).length,
    start: (windowS) => void start(windowS),
    cancel: () => {
      if (trial !== null) cancelTrial(trial.id).then(setTrial, fail);
    },
  };
}

/** Read an open trial once a second; a few answers may be missed, then the operator hears of it. */
function usePolling(id: number | null, onTrial: (trial: Trial) => void, onFailure: (error: unknown) => void): void {
  useEffect(() => {
    if (id === null) return;
    const abort = new AbortController();
    let numMissed = 0;
    const look = (): void => {
      trialOf(id, abort.signal).then(
        (trial) => {
          numMissed = 0;
          onTrial(trial);
        },
        (error: unknown) => {
          numMissed += 1;
          if (!abort.signal.aborted && numMissed === MAX_SILENT) onFailure(error);
        },
      );
    };
    const timer = setInterval(look, POLL_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [id, onTrial, onFailure]);
}

function messageOf(error: unknown): string {
  if (error instanceof ApiError && error.mistakes.length > 0) return 'The draft has mistakes; mend them first.';
  return error instanceof Error ? error.message : String(error);
}
