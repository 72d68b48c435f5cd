"""OpenAI's response bodies, made by hand where every token passes through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from scheduler_worker.protocol.messages import TokenLogprobs

from .answer import LogprobEntry
from .detokenizer import Vocabulary
from .live import LiveRequest

_encode: Final = msgspec.json.Encoder().encode
DONE: Final = b"data: [DONE]\n\n"
WAITING: Final = b": waiting\n\n"


def usage_of(live: LiveRequest) -> dict[str, Any]:
    """OpenAI's usage. Cached tokens are known once the worker's last row came."""
    num_prompt, num_output = live.header.num_prompt_tokens, live.answer.num_output_tokens
    timings = live.answer.timings
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": timings.num_cached_tokens if timings else 0},
    }


class Format:
    """The bodies of one request; `ChatFormat` and `TextFormat` differ in the shape of a choice."""

    prefix = ""
    whole = ""
    part = ""

    def __init__(self, live: LiveRequest, model: str, vocabulary: Vocabulary, include_usage: bool) -> None:
        self._live = live
        self._vocabulary = vocabulary
        self._common = {"id": self.prefix + live.request_id, "created": int(time.time()), "model": model}
        self._include_usage = include_usage
        start = _encode({**self._common, "object": self.part})[:-1]
        self._before = b"data: " + start + b',"choices":[{"index":0,'
        self._after = b'}],"usage":null}\n\n' if include_usage else b"}]}\n\n"
        self._no_more = b',"logprobs":null,"finish_reason":null' + self._after

    def body(self, text: str, entries: Sequence[LogprobEntry] | None) -> bytes:
        """The whole answer of a request that did not stream."""
        choice = {
            "index": 0,
            **self._whole(text),
            "logprobs": self.logprobs(entries) if entries is not None else None,
            "finish_reason": self._live.answer.finish_reason,
        }
        return _encode(
            {**self._common, "object": self.whole, "choices": [choice], "usage": usage_of(self._live)}
        )

    def first(self) -> bytes:
        """What goes before the first text."""
        return b""

    def delta(self, text: str, entries: Sequence[LogprobEntry] | None) -> bytes:
        """One event with more text."""
        if entries is None:
            return b"".join((self._before, self._part(text), self._no_more))
        return self._event(self._part(text), _encode(self.logprobs(entries)), b"null")

    def last(self) -> bytes:
        """The event with the finish reason, the usage if asked for, and the end."""
        end = self._event(self._part(""), b"null", _encode(self._live.answer.finish_reason))
        return end + self._usage_event() + DONE

    def logprobs(self, entries: Sequence[LogprobEntry]) -> dict[str, Any]:
        raise NotImplementedError

    def _whole(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _part(self, text: str) -> bytes:
        raise NotImplementedError

    def _event(self, part: bytes, logprobs: bytes, finish_reason: bytes) -> bytes:
        return b"".join(
            (self._before, part, b',"logprobs":', logprobs, b',"finish_reason":', finish_reason, self._after)
        )

    def _usage_event(self) -> bytes:
        if not self._include_usage:
            return b""
        body = {**self._common, "object": self.part, "choices": [], "usage": usage_of(self._live)}
        return b"data: " + _encode(body) + b"\n\n"

    def _token(self, token_id: int) -> tuple[str, list[int]]:
        data = self._vocabulary.token_bytes(token_id)
        return data.decode("utf-8", errors="replace"), list(data)


class ChatFormat(Format):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def first(self) -> bytes:
        return self._event(b'"delta":{"role":"assistant","content":""}', b"null", b"null")

    def logprobs(self, entries: Sequence[LogprobEntry]) -> dict[str, Any]:
        return {"content": [self._entry(one.logprobs) for one in entries], "refusal": None}

    def _whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _part(self, text: str) -> bytes:
        return b'"delta":{"content":' + _encode(text) + b"}" if text else b'"delta":{}'

    def _entry(self, one: TokenLogprobs) -> dict[str, Any]:
        top = [self._alternative(token_id, logprob) for token_id, logprob in one.top]
        return {**self._alternative(one.token_id, one.logprob), "top_logprobs": top}

    def _alternative(self, token_id: int, logprob: float) -> dict[str, Any]:
        token, data = self._token(token_id)
        return {"token": token, "logprob": max(logprob, -9999.0), "bytes": data}


class TextFormat(Format):
    """`/v1/completions`; with `echo` the prompt's text goes first."""

    prefix = "cmpl-"
    whole = "text_completion"
    part = "text_completion"

    def __init__(
        self, live: LiveRequest, model: str, vocabulary: Vocabulary, include_usage: bool, echo: str = ""
    ) -> None:
        super().__init__(live, model, vocabulary, include_usage)
        self._echo = echo

    def first(self) -> bytes:
        return self._event(self._part(self._echo), b"null", b"null") if self._echo else b""

    def logprobs(self, entries: Sequence[LogprobEntry]) -> dict[str, Any]:
        tokens = [self._token(one.logprobs.token_id)[0] for one in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [max(one.logprobs.logprob, -9999.0) for one in entries],
            "top_logprobs": [self._top(one.logprobs) for one in entries],
            "text_offset": [one.at for one in entries],
        }

    def _whole(self, text: str) -> dict[str, Any]:
        return {"text": self._echo + text}

    def _part(self, text: str) -> bytes:
        return b'"text":' + _encode(text)

    def _top(self, one: TokenLogprobs) -> dict[str, float]:
        return {self._token(token_id)[0]: max(logprob, -9999.0) for token_id, logprob in one.top}
