"""A request that this gateway answers for: its growing answer, its times, and whoever waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol.messages import CompletionRecord, Header, LatencySample, Payload, Timings

from .answer import CANCELLED, FAILED, Answer
from .clock import RedisClock

STATES = {CANCELLED: "cancelled", FAILED: "failed"}


@dataclass(eq=False, slots=True, kw_only=True)
class LiveRequest:
    """Readings (`*_reading`) are of `perf_counter`. `gateway` names the output stream that it is read from.

    `is_stream`: TTFT ends when the first bytes are written; otherwise when the first token is here.
    `has_client`: somebody waits for the answer and will finish the request; `is_gone`: that client left.
    """

    header: Header
    answer: Answer
    gateway: str
    payload: Payload | None = None
    is_stream: bool = False
    is_adopted: bool = False
    rules: ClassPolicy | None = None
    headers_reading: float = 0.0
    first_reading: float | None = None
    end_reading: float | None = None
    changed_reading: float = field(default_factory=time.perf_counter)
    finished_published_at: float | None = None
    worker: str = ""
    is_recorded: bool = False
    has_client: bool = False
    is_gone: bool = False
    num_missed_looks: int = 0
    _waiter: asyncio.Future[None] | None = None
    _take: Callable[[], bool] | None = None

    @property
    def request_id(self) -> str:
        return self.header.request_id

    async def changed(self, timeout_s: float, take: Callable[[], bool]) -> None:
        """Wait until there is something new that `take` leaves to us, or the time is over. One waiter only.

        `take` is called at once where the news come, and must not fail: a task that is woken for every token costs
        more than the token.
        """
        loop = asyncio.get_running_loop()
        self._waiter, self._take = loop.create_future(), take
        timer = loop.call_later(timeout_s, self._release)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = self._take = None

    def wake(self) -> None:
        """Something is new."""
        self.changed_reading = time.perf_counter()
        if self._waiter is None or self._waiter.done() or self._take is None or self._take():
            return
        self._release()

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def ttft_s(self) -> float | None:
        """Headers in to first token out."""
        return None if self.first_reading is None else self.first_reading - self.headers_reading

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first."""
        if self.first_reading is None or self.end_reading is None or self.answer.num_output_tokens < 2:
            return None
        return (self.end_reading - self.first_reading) / (self.answer.num_output_tokens - 1)

    def e2e_s(self, clock: RedisClock) -> float:
        """Arrival to the last byte; by Redis's clock where the headers came to another process."""
        end = self.end_reading if self.end_reading is not None else time.perf_counter()
        return clock.at(end) - self.header.arrived_at if self.is_adopted else end - self.headers_reading

    @property
    def state(self) -> str:
        """The row's terminal state."""
        return STATES.get(self.answer.finish_reason, "succeeded")

    def met(self, clock: RedisClock) -> bool | None:
        """Whether all objectives of its class were met; None where that is not known."""
        if self.rules is None or self.is_adopted or self.state == "cancelled":
            return None
        if self.state == "failed" or self.ttft_s is None:
            return False
        slo, tpot_s = self.rules.slo, self.tpot_s
        in_time = self.ttft_s <= slo.ttft_s and (tpot_s is None or tpot_s <= slo.tpot_s)
        return in_time and (slo.e2e_s is None or self.e2e_s(clock) <= slo.e2e_s)

    def first_sample(self, clock: RedisClock) -> LatencySample:
        """Its sample at the first token."""
        return LatencySample(
            at=clock.at(self.first_reading or 0.0),
            class_id=self.header.class_id,
            tenant=self.header.tenant,
            request_id=self.request_id,
            ttft_s=self.ttft_s,
            num_prompt_tokens=self.header.num_prompt_tokens,
        )

    def end_sample(self, clock: RedisClock) -> LatencySample:
        """Its sample at the end."""
        return LatencySample(
            at=clock.at(self.end_reading or 0.0),
            class_id=self.header.class_id,
            tenant=self.header.tenant,
            request_id=self.request_id,
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            e2e_s=self.e2e_s(clock),
            num_prompt_tokens=self.header.num_prompt_tokens,
            num_output_tokens=self.answer.num_output_tokens,
            met=self.met(clock),
            outcome=self.state,
        )

    def completion(self, clock: RedisClock) -> CompletionRecord:
        """Its record for Postgres. Text that Postgres cannot hold (U+0000) is replaced."""
        end_at = clock.at(self.end_reading or time.perf_counter())
        answer, state = self.answer, self.state
        published_at = self.finished_published_at
        return CompletionRecord(
            request_id=self.request_id,
            state=state,
            finish_reason="error" if state == "failed" else answer.finish_reason,
            finished_at=end_at,
            num_prompt_tokens=self.header.num_prompt_tokens,
            num_output_tokens=answer.num_output_tokens,
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
            e2e_s=self.e2e_s(clock),
            first_token_at=None if self.first_reading is None else clock.at(self.first_reading),
            post_s=None if published_at is None else max(end_at - published_at, 0.0),
            worker=self.worker,
            attempt=answer.attempt,
            text=answer.text.replace("\0", "\N{REPLACEMENT CHARACTER}"),
            error=answer.error,
            timings=answer.timings or Timings(),
        )
