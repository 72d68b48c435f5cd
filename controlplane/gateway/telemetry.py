"""What the gateway measured, four times a second on the telemetry stream, and every arrival for what-if."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import EventRecord, GatewayTelemetry, LatencySample
from scheduler_worker.protocol.telemetry import stream_fields

from .clock import RedisClock

logger = logging.getLogger(__name__)
INTERVAL_S: Final = 0.25
MAX_HELD: Final = 10_000
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class OpenMisses:
    """Open requests by class that have missed their TTFT objective: those without a first token, and all."""

    overdue: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)


class Telemetry:
    """Counts and samples since the last message. Arrivals are `(at, class, tenant, prompt tokens, max_tokens,
    outcome)` with outcome `accepted` or the reason of the refusal, msgpack in the field `a` of each entry."""

    def __init__(
        self,
        pool: str,
        clock: RedisClock,
        num_streams: Callable[[], int],
        misses: Callable[[], OpenMisses] = OpenMisses,
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._num_streams = num_streams
        self._misses = misses
        self._sequence = 0
        self._sent_reading = time.perf_counter()
        self._reset()

    def now(self) -> float:
        """Redis's time."""
        return self._clock.now()

    def arrived(
        self, class_id: str, tenant: str, num_prompt_tokens: int, max_tokens: int, outcome: str
    ) -> None:
        """A request reached admission."""
        self._arrivals[class_id] += 1
        if outcome != "accepted":
            self._refused[class_id] += 1
        record = (self._clock.now(), class_id, tenant, num_prompt_tokens, max_tokens, outcome)
        self._arrival_records.append(_encode(record))

    def tokens(self, class_id: str, num: int) -> None:
        """Output tokens came."""
        self._output_tokens[class_id] += num

    def first_token(self, sample: LatencySample) -> None:
        """A request's first token left."""
        self._first_tokens.append(sample)

    def finished(self, sample: LatencySample) -> None:
        """A request ended."""
        self._finished.append(sample)

    def event(self, event: EventRecord) -> None:
        """A decision of the gateway's."""
        self._events.append(event)

    async def run(self, client: redis.asyncio.Redis, gateway: Callable[[], str]) -> None:
        """Send until cancelled. What Redis does not take is dropped: old figures must not look new."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.send(client, gateway())
            except RedisError as error:
                logger.warning("telemetry was dropped: %s", error)

    async def send(self, client: redis.asyncio.Redis, gateway: str) -> None:
        """One message, also when there is nothing to say."""
        fields: dict[Any, Any] = {**stream_fields(self._message(gateway))}
        arrivals = self._arrival_records
        self._reset()
        async with client.pipeline(transaction=False) as pipe:
            pipe.xadd(
                keys.TELEMETRY.of(self._pool),
                fields,
                maxlen=keys.TELEMETRY_MAX_ENTRIES,
                approximate=True,
            )
            for record in arrivals:
                pipe.xadd(
                    keys.ARRIVALS.of(self._pool),
                    {b"a": record},
                    maxlen=keys.ARRIVALS_MAX_ENTRIES,
                    approximate=True,
                )
            await pipe.execute()

    def _message(self, gateway: str) -> GatewayTelemetry:
        now = time.perf_counter()
        self._sequence += 1
        misses = self._misses()
        return GatewayTelemetry(
            gateway=gateway,
            pool=self._pool,
            at=self._clock.at(now),
            sequence=self._sequence,
            interval_s=INTERVAL_S,
            open_streams=self._num_streams(),
            arrivals=dict(self._arrivals),
            refused=dict(self._refused),
            output_tokens=dict(self._output_tokens),
            first_tokens=tuple(self._first_tokens),
            finished=tuple(self._finished),
            overdue=dict(misses.overdue),
            missed=dict(misses.missed),
            events=tuple(self._events),
        )

    def _reset(self) -> None:
        self._arrivals: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._output_tokens: Counter[str] = Counter()
        self._first_tokens: list[LatencySample] = []
        self._finished: list[LatencySample] = []
        self._events: list[EventRecord] = []
        self._arrival_records: list[bytes] = []
