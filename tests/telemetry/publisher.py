"""Puts telemetry onto a real stream, stamped with Redis's time."""

from __future__ import annotations

from typing import Any, cast

from redis.asyncio import Redis

from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import (
    GatewayTelemetry,
    PolicyAnnouncement,
    WorkerTelemetry,
    encode,
)
from scheduler_worker.protocol.telemetry import stream_fields
from tests.telemetry import builders


class Publisher:
    """Speaks for gateways and workers of a pool."""

    def __init__(self, redis: Redis, pool: str) -> None:
        self.redis, self.pool = redis, pool

    async def now(self) -> float:
        seconds, microseconds = await self.redis.time()
        return float(seconds + microseconds / 1e6)

    async def announce(self, policy: Policy, version: int = 41) -> None:
        announcement = PolicyAnnouncement(
            version=version, document=policy.model_dump_json(), published_at=await self.now()
        )
        await self.redis.set(keys.POLICY.of(self.pool), encode(announcement))

    async def publish(self, *messages: GatewayTelemetry | WorkerTelemetry) -> None:
        for message in messages:
            fields = cast(dict[Any, Any], stream_fields(message))
            await self.redis.xadd(keys.TELEMETRY.of(self.pool), fields)

    async def requests(self, num: int, ttft_s: float = 0.05, age_s: float = 0.0, **fields: Any) -> None:
        """As many requests, ended `age_s` ago, in one message of a gateway."""
        at = await self.now() - age_s - builders.T0
        names = [f"{at}-{number}" for number in range(num)]
        first = tuple(builders.first(at, ttft_s, request_id=name, **fields) for name in names)
        ended = tuple(builders.ended(at, ttft_s, request_id=name, **fields) for name in names)
        await self.publish(builders.gateway(at, first_tokens=first, finished=ended))

    async def worker(self, name: str = "gpu0", age_s: float = 0.0, **fields: Any) -> None:
        await self.publish(builders.worker(await self.now() - age_s - builders.T0, name, **fields))
