// The Playground's access to the gateway, and the one answer that may be running.

import { useCallback, useEffect, useRef, useState } from 'react';
import { ApiError } from '../../api/http';
import type { ChatBody } from '../../api/playground';
import { chat, firstModel, playgroundKey } from '../../api/playground';
import { monotonicS } from '../../live/client';
import type { Answer } from '../../lib/answer';
import { begun, extended } from '../../lib/answer';
import type { Failure } from '../../lib/panelState';

export type Access = { retry: () => void } & (
  | { kind: 'asking' }
  | { kind: 'failed'; failure: Failure }
  | { kind: 'ready'; key: string; classes: string[]; model: string }
);

type AccessState =
  | { kind: 'asking' }
  | { kind: 'failed'; failure: Failure }
  | { kind: 'ready'; key: string; classes: string[]; model: string };

export function useAccess(): Access {
  const [state, setState] = useState<AccessState>({ kind: 'asking' });
  const ask = useCallback(() => {
    openAccess().then(setState, (error: unknown) => setState({ kind: 'failed', failure: failureOf(error) }));
  }, []);
  useEffect(ask, [ask]);
  const retry = (): void => {
    setState({ kind: 'asking' });
    ask();
  };
  return { ...state, retry };
}

async function openAccess(): Promise<AccessState> {
  const { key, classes } = await playgroundKey();
  return { kind: 'ready', key, classes, model: await firstModel(key) };
}

function failureOf(error: unknown): Failure {
  const detail = error instanceof Error ? error.message : String(error);
  return { what: 'The gateway does not let the Playground in', detail, id: error instanceof ApiError ? error.id : null };
}

export interface Problem {
  message: string;
  status: number;
}

export interface Chat {
  answer: Answer | null;
  /** The class that the running or last request was sent in. */
  classId: string | null;
  problem: Problem | null;
  isRunning: boolean;
  isStopped: boolean;
  send: (key: string, body: ChatBody) => void;
  stop: () => void;
}

export function useChat(): Chat {
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [classId, setClassId] = useState<string | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [isRunning, setIsRunning] = useState(false);
  const [isStopped, setIsStopped] = useState(false);
  const abort = useRef<AbortController | null>(null);
  useEffect(() => () => abort.current?.abort(), []);

  const send = (key: string, body: ChatBody): void => {
    const controller = new AbortController();
    abort.current = controller;
    setAnswer(begun(monotonicS()));
    setClassId(body.priority);
    setProblem(null);
    setIsStopped(false);
    setIsRunning(true);
    chat(
      key,
      body,
      {
        id: (requestId) => setAnswer((known) => (known === null ? known : { ...known, requestId })),
        chunk: (chunk) => {
          const at = monotonicS();
          setAnswer((known) => (known === null ? known : extended(known, chunk, at)));
        },
      },
      controller.signal,
    )
      .catch((error: unknown) => {
        if (controller.signal.aborted) setIsStopped(true);
        else setProblem(problemOf(error));
      })
      .finally(() => setIsRunning(false));
  };

  return { answer, classId, problem, isRunning, isStopped, send, stop: () => abort.current?.abort() };
}

function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) return { message: error.message, status: error.status };
  return { message: 'The gateway could not be reached.', status: 0 };
}
