import { describe, expect, it } from 'vitest';
import { begun, extended, tpotS, ttftS } from './answer';
import { EventReader } from './sse';

describe('an answer', () => {
  it('measures its first token and the mean gap after it', () => {
    let answer = begun(10);
    answer = extended(answer, { id: 'r1', choices: [{ delta: { content: '' } }] }, 10.1);
    answer = extended(answer, { id: 'r1', choices: [{ delta: { content: 'Pa' } }] }, 10.5);
    answer = extended(answer, { id: 'r1', choices: [{ delta: { content: 'ris' }, finish_reason: 'stop' }] }, 10.7);
    answer = extended(answer, { choices: [], usage: { prompt_tokens: 5, completion_tokens: 3 } }, 10.8);
    expect([answer.text, answer.requestId, answer.finishReason]).toEqual(['Paris', 'r1', 'stop']);
    expect(ttftS(answer)).toBeCloseTo(0.5);
    expect(tpotS(answer)).toBeCloseTo(0.1);
  });

  it('does not claim a gap before the number of tokens is known', () => {
    expect(tpotS(extended(begun(0), { choices: [{ delta: { content: 'x' } }] }, 1))).toBeNull();
  });
});

describe('server-sent events', () => {
  it('survive any cut of the stream', () => {
    const text = 'data: {"a":1}\n\n: keep-alive\n\ndata: two\ndata: lines\r\n\r\ndata: [DONE]\n\n';
    for (let size = 1; size <= text.length; size += 1) {
      const reader = new EventReader();
      const pieces = text.match(new RegExp(`[^]{1,${size}}`, 'g')) ?? [];
      expect(pieces.flatMap((piece) => reader.push(piece))).toEqual(['{"a":1}', 'two\nlines', '[DONE]']);
    }
  });
});
