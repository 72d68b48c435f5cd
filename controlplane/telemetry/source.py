"""What the folder reads from Redis: the stream, the policy, what workers announce, the time."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from redis.asyncio import Redis

from controlplane.telemetry.causes import BrokenHalf, BrokenPromises
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import (
    GatewayTelemetry,
    PolicyAnnouncement,
    ProtocolError,
    WorkerInfo,
    WorkerTelemetry,
    decode,
    encode,
)
from scheduler_worker.protocol.telemetry import read_fields

logger = logging.getLogger(__name__)

CHUNK: Final = 500
WATCHED_TTL_S: Final = 10
BROKEN_TTL_S: Final = 15 * 60
COMPLAIN_EVERY_S: Final = 60.0

Entry = tuple[bytes, Mapping[bytes, bytes]]


class RedisClock:
    """Redis's time, between two looks at it. It never goes back."""

    def __init__(self) -> None:
        self._offset_s = 0.0
        self._last = 0.0

    def set(self, seconds: int, microseconds: int, asked_at: float, answered_at: float) -> None:
        """Take Redis's answer to TIME; `asked_at` and `answered_at` are monotonic."""
        self._offset_s = seconds + microseconds / 1e6 - (asked_at + answered_at) / 2

    def now(self) -> float:
        self._last = max(self._last, time.monotonic() + self._offset_s)
        return self._last


class TelemetrySource:
    """One pool's telemetry in Redis. The connection must not decode replies."""

    def __init__(self, redis: Redis, pool: str) -> None:
        self._redis, self._pool = redis, pool
        self._stream = keys.TELEMETRY.of(pool)
        self._position = b"0"
        self._complained_at = -COMPLAIN_EVERY_S
        self._policy_seen = b""
        self.clock = RedisClock()

    async def read_new(self) -> AsyncIterator[GatewayTelemetry | WorkerTelemetry]:
        """The messages since the last call, in the stream's order; at the first, all that are left."""
        while True:
            reply: Any = await self._redis.xread({self._stream: self._position}, count=CHUNK)
            entries: list[Entry] = reply[0][1] if reply else []
            for position, fields in entries:
                self._position = position
                if message := self._understood(fields):
                    yield message
            if len(entries) < CHUNK:
                return

    def _understood(self, fields: Mapping[bytes, bytes]) -> GatewayTelemetry | WorkerTelemetry | None:
        """The message, or None and a complaint: one bad source must not blind us to the others."""
        try:
            return read_fields(fields)
        except ProtocolError as error:
            self._complain(error)
            return None

    def _complain(self, error: Exception) -> None:
        if time.monotonic() - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = time.monotonic()
            logger.warning("what cannot be read was left out of telemetry: %s", error)

    async def set_clock(self) -> None:
        asked_at = time.monotonic()
        seconds, microseconds = await self._redis.time()
        self.clock.set(seconds, microseconds, asked_at, time.monotonic())

    async def new_policy(self) -> tuple[int, Policy] | None:
        """The live policy, if it is another than at the last call."""
        raw: Any = await self._redis.get(keys.POLICY.of(self._pool))
        if raw is None or raw == self._policy_seen:
            return None
        try:
            announcement = decode(PolicyAnnouncement, raw)
            policy = Policy.model_validate_json(announcement.document)
        except ValueError as error:
            self._complain(error)
            return None
        self._policy_seen = raw
        return announcement.version, policy

    async def workers(self) -> tuple[dict[str, WorkerInfo], dict[str, float]]:
        """What the workers announced, and the ends of their leases."""
        raw: Any = await self._redis.zrange(keys.WORKER_LEASES.of(self._pool), 0, -1, withscores=True)
        leases = {name.decode(): float(end) for name, end in raw}
        if not leases:
            return {}, {}
        values: Any = await self._redis.mget([keys.WORKER_INFO.of(self._pool, name) for name in leases])
        known = ((name, self._info(value)) for name, value in zip(leases, values, strict=True) if value)
        return {name: info for name, info in known if info is not None}, leases

    def _info(self, raw: bytes) -> WorkerInfo | None:
        try:
            return decode(WorkerInfo, raw)
        except ProtocolError as error:
            self._complain(error)
            return None

    async def is_watched(self) -> bool:
        """Whether anyone looks at the live page, in whatever process."""
        return bool(await self._redis.exists(keys.TELEMETRY_WATCHED.of(self._pool)))

    async def mark_watched(self) -> None:
        await self._redis.set(keys.TELEMETRY_WATCHED.of(self._pool), b"1", ex=WATCHED_TTL_S)

    async def broken(self) -> tuple[BrokenHalf, ...]:
        """The promises that the leader, this one or the last, knows to be broken."""
        raw: Any = await self._redis.get(keys.TELEMETRY_BROKEN.of(self._pool))
        try:
            return decode(BrokenPromises, raw).halves if raw else ()
        except ProtocolError as error:
            self._complain(error)
            return ()

    async def keep_broken(self, halves: tuple[BrokenHalf, ...]) -> None:
        """Keep the broken promises for whoever leads next."""
        key = keys.TELEMETRY_BROKEN.of(self._pool)
        if halves:
            await self._redis.set(key, encode(BrokenPromises(halves=halves)), ex=BROKEN_TTL_S)
        else:
            await self._redis.delete(key)
