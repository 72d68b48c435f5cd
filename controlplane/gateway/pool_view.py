"""What the gateway knows of its pool, refreshed twice a second: the live policy and the workers that live."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import redis.asyncio

from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import PolicyAnnouncement, ProtocolError, WorkerInfo, decode

from .clock import RedisClock

logger = logging.getLogger(__name__)
REFRESH_S: Final = 0.5
STALE_AFTER_S: Final = 5.0


@dataclass(slots=True)
class PoolView:
    """`workers` holds those with a lease that is not over and that do not drain.

    `num_draining` others drain; `drained_at` is when an operator last ordered one of them to, if one did.
    """

    pool: str
    clock: RedisClock
    policy: Policy | None = None
    policy_version: int = 0
    workers: dict[str, WorkerInfo] = field(default_factory=dict)
    num_gateways: int = 1
    num_draining: int = 0
    drained_at: float | None = None
    refreshed_at: float = float("-inf")
    _announced: bytes = b""

    async def refresh(self, client: redis.asyncio.Redis) -> None:
        """Read Redis's clock, the policy and the workers; two round trips."""
        sent_at = time.perf_counter()
        async with client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.get(keys.POLICY.of(self.pool))
            pipe.zrange(keys.WORKER_LEASES.of(self.pool), 0, -1, withscores=True)
            pipe.zcard(keys.GATEWAY_LEASES.of(self.pool))
            (seconds, microseconds), announced, leases, num_gateways = await pipe.execute()
        now = seconds + microseconds / 1e6
        self.clock.observe(now, sent_at, time.perf_counter())
        self.num_gateways = max(num_gateways, 1)
        self._take_policy(announced)
        await self._take_workers(client, [name for name, ends_at in leases if ends_at > now], now)
        self.refreshed_at = time.perf_counter()

    @property
    def is_fresh(self) -> bool:
        """Whether Redis answered lately."""
        return time.perf_counter() - self.refreshed_at < STALE_AFTER_S

    @property
    def has_worker(self) -> bool:
        """Whether a request would be served."""
        return bool(self.workers)

    @property
    def block_size(self) -> int | None:
        """The workers' KV block size, for the prompt's block hashes."""
        return next((one.block_size for one in self.workers.values()), None)

    @property
    def max_model_len(self) -> int | None:
        """The longest context that a live worker can hold."""
        return max((one.max_model_len for one in self.workers.values()), default=None)

    def use_policy(self, announcement: PolicyAnnouncement) -> None:
        """Make a policy the one that is obeyed."""
        self.policy = Policy.model_validate_json(announcement.document)
        self.policy_version = announcement.version

    def _take_policy(self, announced: bytes | None) -> None:
        if announced is None or announced == self._announced:
            return
        self._announced = announced
        try:
            self.use_policy(decode(PolicyAnnouncement, announced))
        except ValueError as error:
            logger.error("the live policy cannot be read; keeping v%d: %s", self.policy_version, error)

    def why_no_worker(self) -> str:
        """Why no request is served now, and until when as far as that is known."""
        if not self.num_draining:
            return "No worker is connected for this model; requests are served again once one is."
        ordered = ""
        if self.drained_at is not None:
            at = datetime.fromtimestamp(self.drained_at, UTC)
            ordered = f", as an operator ordered at {at:%H:%M:%S} UTC; requests are served again once that is lifted"
        return f"No worker takes requests for this model now: every worker is draining{ordered}."

    async def _take_workers(self, client: redis.asyncio.Redis, names: list[bytes], now: float) -> None:
        found: dict[str, WorkerInfo] = {}
        if names:
            infos: list[Any] = await client.mget(
                [keys.WORKER_INFO.of(self.pool, name.decode()) for name in names]
            )
            found = _readable(dict(zip(names, infos, strict=True)))
        self.workers = {name: info for name, info in found.items() if not info.draining}
        draining = [name for name, info in found.items() if info.draining]
        self.num_draining = len(draining)
        self.drained_at = await self._ordered_at(client, draining, now) if draining and not self.workers else None

    async def _ordered_at(self, client: redis.asyncio.Redis, names: list[str], now: float) -> float | None:
        """When the last of the orders to drain was given; None where the workers drain by themselves."""
        async with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.pttl(keys.WORKER_CONTROL.of(self.pool, name))
            left_ms = await pipe.execute()
        return max((now - keys.DRAIN_TTL_S + left / 1000 for left in left_ms if left > 0), default=None)


def _readable(infos: Mapping[bytes, bytes | None]) -> dict[str, WorkerInfo]:
    found: dict[str, WorkerInfo] = {}
    for name, data in infos.items():
        try:
            if data is not None:
                found[name.decode()] = decode(WorkerInfo, data)
        except ProtocolError as error:
            logger.error("worker %s cannot be read: %s", name.decode(), error)
    return found
