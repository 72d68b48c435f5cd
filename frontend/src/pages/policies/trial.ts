// The operator's trial of this draft: what there is to try it on, how far it is, what came of it.

import { useCallback, useEffect, useState } from 'react';
import { ApiError } from '../../api/http';
import type { Traffic, Trial } from '../../api/trials';
import { cancelTrial, newestTrial, recordedTraffic, startTrial, trialOf } from '../../api/trials';
import { changesBetween } from '../../lib/document';
import type { Editor } from './editor';

const POLL_MS = 1000;
const MAX_SILENT = 5;
const LOOK_AGAIN_MS = 15_000;

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
  const [known, setTrial] = useState<Trial | null>(null);
  const [isStarting, setIsStarting] = useState(false);
  const [problem, setProblem] = useState<string | null>(null);
  const trial = known?.base_version === base.version ? known : null;
  const fail = useCallback((error: unknown) => setProblem(messageOf(error)), []);
  const { traffic, unheard: trafficUnheard } = useTraffic(editor.changes.length > 0, username, base.version, setTrial);
  const trialUnheard = usePolling(isOpen(trial) ? (trial?.id ?? null) : null, setTrial);

  const start = async (windowS: number | null): Promise<void> => {
    setIsStarting(true);
    setProblem(null);
    try {
      const made = await startTrial(draft, windowS);
      setTrial(made);
      if (made.base_version !== base.version) {
        setProblem(`v${made.base_version} was published meanwhile; move your changes onto it first.`);
        await cancelTrial(made.id);
      }
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
    problem: problem ?? trialUnheard ?? trafficUnheard,
    numChangedSince: trial === null ? 0 : changesBetween(trial.document, draft).length,
    start: (windowS) => void start(windowS),
    cancel: () => {
      setProblem(null);
      if (trial !== null) cancelTrial(trial.id).then(setTrial, fail);
    },
  };
}

/** What there is to try a draft on, and the operator's newest trial: both go on while the page is open. */
function useTraffic(hasDraft: boolean, username: string, baseVersion: number, onTrial: (change: (now: Trial | null) => Trial | null) => void) {
  const [traffic, setTraffic] = useState<Traffic | null>(null);
  const [unheard, setUnheard] = useState<string | null>(null);
  useEffect(() => {
    if (!hasDraft) return;
    const abort = new AbortController();
    const look = (): void => {
      Promise.all([recordedTraffic(abort.signal), newestTrial(username, baseVersion, abort.signal)]).then(
        ([found, newest]) => {
          setUnheard(null);
          setTraffic(found);
          onTrial((now) => (now?.base_version === baseVersion ? now : newest));
        },
        (error: unknown) => {
          if (!abort.signal.aborted) setUnheard(messageOf(error));
        },
      );
    };
    look();
    const timer = setInterval(() => {
      if (!document.hidden) look();
    }, LOOK_AGAIN_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [hasDraft, username, baseVersion, onTrial]);
  return { traffic, unheard };
}

/** Read an open trial once a second; a few answers may be missed, then the operator hears of it until one comes. */
function usePolling(id: number | null, onTrial: (trial: Trial) => void): string | null {
  const [unheard, setUnheard] = useState<string | null>(null);
  useEffect(() => {
    if (id === null) return;
    const abort = new AbortController();
    let numMissed = 0;
    const look = (): void => {
      trialOf(id, abort.signal).then(
        (trial) => {
          numMissed = 0;
          setUnheard(null);
          onTrial(trial);
        },
        (error: unknown) => {
          numMissed += 1;
          if (!abort.signal.aborted && numMissed >= MAX_SILENT) setUnheard(messageOf(error));
        },
      );
    };
    const timer = setInterval(look, POLL_MS);
    return () => {
      clearInterval(timer);
      abort.abort();
    };
  }, [id, onTrial]);
  return id === null ? null : unheard;
}

function messageOf(error: unknown): string {
  if (error instanceof ApiError && error.mistakes.length > 0) return 'The draft has mistakes; mend them first.';
  return error instanceof Error ? error.message : String(error);
}
