// A chat with the gateway, as any client would have it: an API key and server-sent events.

import type { Chunk } from '../lib/answer';
import { EventReader } from '../lib/sse';
import { ApiError, request } from './http';

export interface PlaygroundKey {
  key: string;
  classes: string[];
}

export interface Message {
  role: 'system' | 'user' | 'assistant';
  content: string;
}

export interface ChatBody {
  model: string;
  priority: string;
  messages: Message[];
  max_tokens: number;
  temperature: number;
  stream: true;
  stream_options: { include_usage: true };
}

export async function playgroundKey(): Promise<PlaygroundKey> {
  return (await request<PlaygroundKey>('/api/v1/playground/key', { method: 'POST', body: {} })).body;
}

export async function firstModel(key: string): Promise<string> {
  const response = await fetch('/v1/models', { headers: { Authorization: `Bearer ${key}` } });
  if (!response.ok) throw await gatewayError(response);
  const body = (await response.json()) as { data: { id: string }[] };
  const [first] = body.data;
  if (first === undefined) throw new ApiError(503, 'no_model', 'The gateway serves no model yet.', true);
  return first.id;
}

/** Streams one answer; its id, then every chunk is handed on as it comes. Rejects with `ApiError`, or `AbortError` when stopped. */
export async function chat(key: string, body: ChatBody, take: { id: (id: string) => void; chunk: (chunk: Chunk) => void }, signal: AbortSignal): Promise<void> {
  const response = await fetch('/v1/chat/completions', {
    method: 'POST',
    headers: { Authorization: `Bearer ${key}`, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok || response.body === null) throw await gatewayError(response);
  const id = response.headers.get('x-request-id');
  if (id !== null) take.id(id);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = new EventReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError(0, 'cut_off', 'The stream ended before the answer did. What arrived is shown.', true);
    for (const data of events.push(value)) {
      if (data === '[DONE]') return;
      take.chunk(checked(JSON.parse(data) as Chunk & { error?: GatewayError }));
    }
  }
}

interface GatewayError {
  message?: string;
  code?: string | null;
}

function checked(chunk: Chunk & { error?: GatewayError }): Chunk {
  if (chunk.error === undefined) return chunk;
  throw new ApiError(500, chunk.error.code ?? 'failed', chunk.error.message ?? 'The request failed while it was running.', true);
}

async function gatewayError(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => null)) as { error?: GatewayError } | null;
  const message = body?.error?.message ?? `The gateway answered ${response.status}.`;
  const after = response.headers.get('Retry-After');
  const hint = after === null ? '' : ` Come back in ${after} s.`;
  const full = after !== null && !message.includes(after) ? `${message}${hint}` : message;
  return new ApiError(response.status, body?.error?.code ?? 'refused', full, response.status === 429 || response.status >= 500);
}
