// A streamed answer and what its timing says, measured in this browser.

export interface Answer {
  text: string;
  requestId: string | null;
  model: string | null;
  finishReason: string | null;
  numPromptTokens: number | null;
  numOutputTokens: number | null;
  /** Seconds on the browser's monotonic clock. */
  sentAt: number;
  firstAt: number | null;
  lastAt: number | null;
}

export interface Chunk {
  id?: string;
  model?: string;
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  usage?: { prompt_tokens?: number; completion_tokens?: number } | null;
}

export function begun(sentAt: number): Answer {
  return {
    text: '',
    requestId: null,
    model: null,
    finishReason: null,
    numPromptTokens: null,
    numOutputTokens: null,
    sentAt,
    firstAt: null,
    lastAt: null,
  };
}

/** The answer after one more chunk, received at `at`. */
export function extended(answer: Answer, chunk: Chunk, at: number): Answer {
  const choice = chunk.choices?.[0];
  const piece = choice?.delta?.content ?? '';
  const hasText = piece !== '';
  return {
    ...answer,
    text: answer.text + piece,
    requestId: answer.requestId ?? chunk.id ?? null,
    model: answer.model ?? chunk.model ?? null,
    finishReason: choice?.finish_reason ?? answer.finishReason,
    numPromptTokens: chunk.usage?.prompt_tokens ?? answer.numPromptTokens,
    numOutputTokens: chunk.usage?.completion_tokens ?? answer.numOutputTokens,
    firstAt: answer.firstAt ?? (hasText ? at : null),
    lastAt: hasText ? at : answer.lastAt,
  };
}

export function ttftS(answer: Answer): number | null {
  return answer.firstAt === null ? null : answer.firstAt - answer.sentAt;
}

/** (last − first) ÷ (tokens − 1); unknown before the server has said how many tokens there were. */
export function tpotS(answer: Answer): number | null {
  const { firstAt, lastAt, numOutputTokens } = answer;
  if (firstAt === null || lastAt === null || numOutputTokens === null || numOutputTokens < 2) return null;
  return (lastAt - firstAt) / (numOutputTokens - 1);
}

const FINISH: Record<string, string> = { stop: 'finished by itself', length: 'cut at the longest answer allowed', cancelled: 'stopped' };

export function finishWords(reason: string): string {
  return FINISH[reason] ?? reason;
}
