"""One answer growing: rows of tokens in, text out. No I/O, no clock.

Rows of an older attempt are dropped, tokens that came before are dropped by their offset, a gap is reported
so that the caller can fetch what is missing. Stop strings cut the text; tokens up to the cut count as output.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from scheduler_worker.protocol.messages import FrameRow, Timings, TokenLogprobs

from .detokenizer import Detokenizer, Vocabulary
from .stop_strings import StopStrings

CANCELLED: Final = "cancelled"
FAILED: Final = "failed"


class Taken(StrEnum):
    """What `Answer.take` did with a row."""

    USED = "used"
    OLD = "old"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class LogprobEntry:
    """A token's logprobs and where its text begins in the answer."""

    at: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """How one answer is read: stop strings are looked for after `min_tokens`."""

    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    wants_logprobs: bool = False
    prompt_tail: tuple[int, ...] = field(default=())


class Answer:
    """The state of one output. `finish_reason` is OpenAI's once it ended, else empty; `closed` says that the
    worker's own last row came, which after a stop string is later."""

    def __init__(self, vocabulary: Vocabulary, rules: AnswerRules, eos_ids: frozenset[int]) -> None:
        self._detokenizer: Detokenizer = vocabulary.detokenizer(rules.prompt_tail)
        self._stops = StopStrings(rules.stop)
        self._rules = rules
        self._eos_ids = eos_ids
        self._is_plain = not rules.stop and not rules.wants_logprobs
        self._pending: deque[LogprobEntry] = deque()
        self._entries: list[LogprobEntry] = []
        self._decoded = 0
        self._unread: list[str] = []
        self.attempt = 0
        self.received = array("I")
        self.num_output_tokens = 0
        self.parts: list[str] = []
        self.length = 0
        self.finish_reason = ""
        self.error = ""
        self.stopped_by_string = False
        self.closed = False
        self.timings: Timings | None = None

    @property
    def num_received(self) -> int:
        """Tokens that the worker published, those after a stop string too."""
        return len(self.received)

    @property
    def text(self) -> str:
        """Everything that was emitted."""
        return "".join(self.parts)

    @property
    def ended(self) -> bool:
        """Whether the client has its whole answer."""
        return bool(self.finish_reason)

    def requeued(self, attempt: int) -> None:
        """From here on only this attempt counts."""
        self.attempt = max(self.attempt, attempt)

    def take(self, row: FrameRow) -> Taken:
        """Take a row of tokens, possibly the last."""
        if row.attempt < self.attempt or self.closed:
            return Taken.OLD
        if row.offset > self.num_received:
            return Taken.GAP
        self.attempt = row.attempt
        skip = self.num_received - row.offset
        tokens = row.token_ids[skip:]
        if not tokens and not row.finish and row.token_ids:
            return Taken.OLD
        self._push(tokens, row.logprobs[skip:] if self._rules.wants_logprobs else (), row.finish)
        if row.finish:
            self._close(row)
        return Taken.USED

    def fill(self, token_ids: Sequence[int]) -> None:
        """Tokens published so far, for an answer that missed their rows."""
        self._push(tuple(token_ids[self.num_received :]), (), "")

    def end(self, reason: str, error: str = "") -> None:
        """End it from outside: the client left, or nobody will finish it."""
        if not self.ended:
            self.finish_reason, self.error = reason, error

    def read(self) -> tuple[str, list[LogprobEntry]]:
        """The text and logprobs since the last call."""
        text, entries = "".join(self._unread), self._entries
        self._unread.clear()
        if entries:
            self._entries = []
        return text, entries

    def _push(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], finish: str) -> None:
        self.received.extend(tokens)
        if self.ended:
            return
        if self._is_plain:
            self._push_plain(tokens, finish)
            return
        for index, token_id in enumerate(tokens):
            is_end = finish == "stop" and index == len(tokens) - 1 and token_id in self._eos_ids
            self._push_one(token_id, logprobs[index] if index < len(logprobs) else None, is_end)
            if self.stopped_by_string:
                return

    def _push_plain(self, tokens: Sequence[int], finish: str) -> None:
        """Nothing to look for in the text, nothing to report beside it: as `_push_one` for each, in one go."""
        self.num_output_tokens += len(tokens)
        if finish == "stop" and tokens and tokens[-1] in self._eos_ids:
            tokens = tokens[:-1]
        if tokens and (text := self._detokenizer.push(tokens)):
            self.parts.append(text)
            self._unread.append(text)

    def _push_one(self, token_id: int, logprobs: TokenLogprobs | None, is_end: bool) -> None:
        self.num_output_tokens += 1
        if is_end:
            return
        if logprobs is not None:
            self._pending.append(LogprobEntry(self._decoded, logprobs))
        text = self._detokenizer.push((token_id,))
        if text:
            self._emit(text)

    def _emit(self, text: str) -> None:
        self._decoded += len(text)
        if self.num_output_tokens <= self._rules.min_tokens:
            safe = text
        else:
            safe = self._stops.push(text)
        self._show(safe)
        if self._stops.stopped:
            self.stopped_by_string = True
            self.finish_reason = "stop"
            self._pending.clear()

    def _show(self, text: str) -> None:
        if text:
            self.parts.append(text)
            self._unread.append(text)
            self.length += len(text)
        while self._pending and self._pending[0].at < self.length:
            self._entries.append(self._pending.popleft())

    def _close(self, row: FrameRow) -> None:
        self.closed = True
        self.timings = row.timings
        if self.ended:
            return
        self._flush()
        if not self.ended:
            self.finish_reason, self.error = row.finish, row.error

    def _flush(self) -> None:
        tail = self._detokenizer.flush()
        if tail:
            self._emit(tail)
        if not self.stopped_by_string:
            self._show(self._stops.flush())
            self._entries += self._pending
            self._pending.clear()
