"""The requests that this gateway answers for: from the queue to their record, whatever happens between.

A request is dropped when three things are done: its client has the answer (or left), its record is with the
broker, and its worker wrote the last row. Until then Redis keeps all that another gateway needs to finish it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from controlplane.common.redis import run
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Frame, FrameRow, Payload, Requeued
from scheduler_worker.protocol.scripts import CancelOutcome
from scheduler_worker.protocol.token_bytes import pack, unpack

from .answer import CANCELLED, FAILED, Taken
from .clock import RedisClock
from .completions import Completions
from .errors import Unavailable
from .live import LiveRequest
from .outputs import OutputReader
from .tasks import Tasks
from .telemetry import OpenMisses, Telemetry

logger = logging.getLogger(__name__)
LOST: Final = "The request was lost: neither the queue nor a worker knows it any more."
LOST_AFTER_S: Final = 5.0
MAX_MISSED_LOOKS: Final = 2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is that this gateway holds."""

    state: str
    num_output_tokens: int
    text: str


class Requests:
    """The table of open requests and the output streams that feed them.

    `on_answered` learns the class and length of each answer that ended by itself.
    """

    def __init__(
        self,
        pool: str,
        client: redis.asyncio.Redis,
        clock: RedisClock,
        tasks: Tasks,
        telemetry: Telemetry,
        send: Callable[[list[str]], Any],
        on_answered: Callable[[str, int], None],
    ) -> None:
        self._pool = pool
        self._client = client
        self._clock = clock
        self._tasks = tasks
        self._telemetry = telemetry
        self._on_answered = on_answered
        self._live: dict[str, LiveRequest] = {}
        self._readers: dict[str, tuple[OutputReader, asyncio.Task[Any]]] = {}
        self.completions = Completions(pool, client, send, self._recorded)

    # --- the table ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    @property
    def num_unanswered(self) -> int:
        """Requests whose answer has not ended."""
        return sum(not live.answer.ended for live in self._live.values())

    def misses(self, policy: Policy | None) -> OpenMisses:
        """Open requests that have missed the live policy's TTFT objective. Adopted ones have no gateway's times."""
        found, now = OpenMisses(), time.perf_counter()
        objectives: dict[str, float] = {}
        for live in self._live.values():
            if policy is None or live.is_adopted or live.end_reading is not None or live.rules is None:
                continue
            class_id = live.header.class_id
            if class_id not in objectives:
                objectives[class_id] = _ttft_objective(policy, class_id)
            if (live.first_reading or now) - live.headers_reading > objectives[class_id]:
                found.missed[class_id] += 1
                found.overdue[class_id] += live.first_reading is None
        return found

    def add(self, live: LiveRequest) -> None:
        """Follow a request from here on; before it is queued, so that no row is missed."""
        self._live[live.request_id] = live

    def discard(self, live: LiveRequest) -> None:
        """It was not accepted after all."""
        self._live.pop(live.request_id, None)

    def resume(self, requests: Iterable[LiveRequest]) -> None:
        """Follow requests of a dead gateway; some may have ended with the tokens that were published."""
        for live in requests:
            self.add(live)
            self._after_row(live, was_ended=False)

    def of_gateway(self, gateway: str) -> set[str]:
        """The open requests that a gateway's stream feeds."""
        return {request_id for request_id, live in self._live.items() if live.gateway == gateway}

    def progress(self, request_id: str) -> Progress | None:
        """How far a request is; None when it is not held here."""
        live = self._live.get(request_id)
        if live is None:
            return None
        answer = live.answer
        state = live.state if answer.ended else ("running" if answer.num_received else "queued")
        return Progress(state, answer.num_output_tokens, answer.text)

    # --- the streams --------------------------------------------------------------------------------------

    def follow(self, gateway: str) -> None:
        """Read a gateway's output stream from its beginning; what was read before is recognized."""
        if gateway not in self._readers:
            reader = OutputReader(self._pool, gateway, self._client, self._on_row, self._on_requeued)
            self._readers[gateway] = (reader, self._tasks.keep(f"output of {gateway}", reader.run))

    def unfollow(self, gateway: str) -> OutputReader:
        """Read it no more."""
        reader, task = self._readers.pop(gateway)
        reader.stop()
        task.cancel()
        return reader

    def give_up(self, gateway: str) -> None:
        """Another gateway decides what is kept of this stream; open clients are still served from it."""
        self._readers[gateway][0].is_ours = False

    async def trim(self, in_use: set[str], ours: set[str]) -> None:
        """Drop what nobody needs: entries of our streams, and streams that feed no request."""
        for gateway, (reader, _) in list(self._readers.items()):
            if gateway not in in_use and not self.of_gateway(gateway):
                self.unfollow(gateway)
            elif gateway in ours and reader.is_ours:
                await reader.trim()

    # --- rows ---------------------------------------------------------------------------------------------

    def _on_requeued(self, entry: Requeued) -> None:
        live = self._live.get(entry.request_id)
        if live is not None:
            live.answer.requeued(entry.attempt)
            live.changed_reading = time.perf_counter()

    def _on_row(self, frame: Frame, row: FrameRow) -> bool:
        """Take a row; False when its request is not followed here."""
        live = self._live.get(row.request_id)
        if live is None:
            return False
        before, was_ended = live.answer.num_received, live.answer.ended
        taken = live.answer.take(row)
        if taken is Taken.GAP:
            self._tasks.spawn(self._fill_gap(live, frame, row))
        elif taken is Taken.USED:
            live.worker = frame.worker or live.worker
            live.finished_published_at = frame.published_at if row.finish else None
            self._count(live, live.answer.num_received - before)
            self._after_row(live, was_ended)
        return True

    def _count(self, live: LiveRequest, num_tokens: int) -> None:
        if num_tokens:
            self._telemetry.tokens(live.header.class_id, num_tokens)
            if live.first_reading is None and not live.is_stream and not live.is_adopted:
                self.first_token(live)

    def _after_row(self, live: LiveRequest, was_ended: bool) -> None:
        answer = live.answer
        if answer.ended and not was_ended:
            if not answer.closed:
                self._tasks.spawn(self.cancel(live.request_id))
            if not live.has_client:
                self.finish(live)
        elif answer.closed and live.is_recorded:
            self._drop(live)
        live.wake()

    async def _fill_gap(self, live: LiveRequest, frame: Frame, row: FrameRow) -> None:
        """Rows are missing: their tokens are in Redis all the same."""
        logger.warning("request %s: rows are missing before token %d", live.request_id, row.offset)
        was_ended = live.answer.ended
        published: Any = await self._client.get(keys.TOKENS.of(self._pool, live.request_id))
        live.answer.fill(unpack(published))
        if row.offset > live.answer.num_received:
            live.answer.end(FAILED, LOST)
        else:
            self._on_row(frame, row)
        self._after_row(live, was_ended)

    # --- the end ------------------------------------------------------------------------------------------

    def first_token(self, live: LiveRequest) -> None:
        """The first token left (or, not streaming, is here)."""
        live.first_reading = time.perf_counter()
        self._telemetry.first_token(live.first_sample(self._clock))

    def finish(self, live: LiveRequest) -> None:
        """The client has its answer, or there is none to wait for: record how it ended. Once."""
        if live.end_reading is not None:
            return
        live.end_reading = time.perf_counter()
        if live.state == "succeeded":
            self._on_answered(live.header.class_id, live.answer.num_output_tokens)
        if not live.is_adopted:
            self._telemetry.finished(live.end_sample(self._clock))
        self.completions.add(live, live.completion(self._clock))

    def _recorded(self, live: LiveRequest) -> None:
        live.is_recorded = True
        if live.answer.closed:
            self._drop(live)

    def _drop(self, live: LiveRequest) -> None:
        """Nothing more comes and nothing is owed."""
        if self._live.pop(live.request_id, None) is None:
            return
        self.completions.forget(live)
        if live.gateway in self._readers:
            self._readers[live.gateway][0].recorded(live.request_id)

    async def cancel(self, request_id: str) -> CancelOutcome:
        """End a request wherever it is; its last row follows in the output stream. Raises `Unavailable`."""
        try:
            return await run(self._client, scripts.cancel(self._pool, request_id))
        except RedisError as error:
            raise Unavailable("The queue does not answer. Try again.", retry_after_s=1.0) from error

    def leave(self, live: LiveRequest) -> None:
        """Nobody here waits for the answer any more; it is made all the same."""
        live.has_client = False
        if live.answer.ended:
            self.finish(live)

    def abandon(self, live: LiveRequest, grace_s: float) -> None:
        """The client left: cancel after the grace, unless the answer ends before."""
        self.leave(live)
        if not live.answer.ended:
            self._tasks.spawn(self._abandon(live, grace_s))

    async def _abandon(self, live: LiveRequest, grace_s: float) -> None:
        if grace_s:
            await asyncio.sleep(grace_s)
        if not live.answer.ended:
            live.answer.end(CANCELLED)
            self.finish(live)
            await self.cancel(live.request_id)

    async def look_for_lost(self) -> None:
        """A request that neither waits nor is claimed gets no more rows: queue it again, or end it."""
        long_ago = time.perf_counter() - LOST_AFTER_S
        open_ones = [live for live in self._live.values() if not live.answer.closed]
        quiet = [live for live in open_ones if live.changed_reading < long_ago]
        if not quiet:
            return
        async with self._client.pipeline(transaction=False) as pipe:
            for live in quiet:
                pipe.hexists(keys.HEADERS.of(self._pool), live.request_id)
                pipe.hexists(keys.CLAIMS.of(self._pool), live.request_id)
                pipe.exists(keys.PAYLOAD.of(self._pool, live.request_id))
            known = await pipe.execute()
        for index, live in enumerate(quiet):
            waits, is_claimed, has_payload = known[3 * index : 3 * index + 3]
            await self._looked(live, is_known=bool(waits or is_claimed), has_payload=bool(has_payload))

    async def _looked(self, live: LiveRequest, is_known: bool, has_payload: bool) -> None:
        live.num_missed_looks = 0 if is_known else live.num_missed_looks + 1
        if live.num_missed_looks < MAX_MISSED_LOOKS:
            return
        if live.payload is not None and not has_payload and not live.answer.ended:
            await self._queue_again(live, live.payload)
            return
        was_ended = live.answer.ended
        live.answer.end(FAILED, LOST)
        live.answer.closed = True
        self._after_row(live, was_ended)

    async def _queue_again(self, live: LiveRequest, payload: Payload) -> None:
        """Redis lost its memory: this gateway knows enough to go on after the last token that came."""
        logger.warning("request %s was lost by the queue and is queued again", live.request_id)
        answer = live.answer
        answer.requeued(answer.attempt + 1)
        header = msgspec.structs.replace(
            live.header, attempt=answer.attempt, num_generated_tokens=answer.num_received
        )
        await self._client.set(
            keys.TOKENS.of(self._pool, live.request_id), pack(answer.received), ex=keys.PAYLOAD_TTL_S
        )
        await run(self._client, scripts.enqueue(self._pool, header, payload))
        live.num_missed_looks, live.changed_reading = 0, time.perf_counter()


def _ttft_objective(policy: Policy, class_id: str) -> float:
    """The class's, as the live policy has it; a class that it does not know promises nothing."""
    try:
        return policy.find(class_id).slo.ttft_s
    except KeyError:
        return float("inf")
