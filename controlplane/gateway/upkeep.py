"""Every second: keep the lease, requeue what dead workers held, finish what dead gateways accepted, tidy."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Final

import redis.asyncio
from redis.exceptions import RedisError

from controlplane.common.redis import run
from controlplane.inference.selectors import parameters_of
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Header

from . import leases
from .adoption import owned_headers, rebuild
from .database import DatabaseThreads
from .requests import Requests
from .tokenizer import TextModel

logger = logging.getLogger(__name__)
TICK_S: Final = 1.0


class Upkeep:
    """This gateway's name and lease, and the gateways that it adopted.

    Each start of a process is a gateway of its own: what an earlier one left is adopted like any other's.
    """

    def __init__(
        self,
        pool: str,
        prefix: str,
        client: redis.asyncio.Redis,
        requests: Requests,
        reads: DatabaseThreads,
        model: TextModel,
    ) -> None:
        self._pool = pool
        self._prefix = prefix
        self._client = client
        self._requests = requests
        self._reads = reads
        self._model = model
        self._adopted: set[str] = set()
        self._leases = keys.GATEWAY_LEASES.of(pool)
        self.renewed_reading = time.perf_counter()
        self.gateway = self._new_name()

    async def start(self) -> None:
        """Take the lease before the first request can be accepted, and listen."""
        self._requests.follow(self.gateway)
        await self._renew()

    async def tick(self) -> None:
        """One round. What fails because Redis is away is done in the next."""
        try:
            await self._renew()
            await run(self._client, scripts.requeue_expired(self._pool))
            await self._adopt()
            await self._requests.trim(in_use={self.gateway, *self._adopted}, ours={self.gateway})
            await self._requests.look_for_lost()
        except RedisError as error:
            logger.error("the gateway's upkeep failed: %s", error)

    async def leave(self) -> None:
        """Without open requests lease and stream go; else the leases end, so that another adopts at once."""
        if len(self._requests):
            await self._client.zadd(self._leases, {self.gateway: 0})
        else:
            await self._requests.unfollow(self.gateway).delete()
            await self._client.zrem(self._leases, self.gateway)
        for name in self._adopted:
            await self._client.zadd(self._leases, {name: 0})

    def _new_name(self) -> str:
        return f"{self._prefix}-{secrets.token_hex(3)}"

    async def _renew(self) -> None:
        reading = time.perf_counter()
        lapsed = reading - self.renewed_reading > keys.GATEWAY_LEASE_S
        lease = await run(self._client, leases.renew(self._pool, self.gateway, lapsed, self._adopted))
        self.renewed_reading = reading
        if lease is leases.Lease.TAKEN:
            self._take_new_name()

    def _take_new_name(self) -> None:
        """Another gateway finishes what the old name accepted; open clients still get their answers here."""
        logger.error("the lease of %s was lost; this gateway goes on under a new name", self.gateway)
        self._requests.give_up(self.gateway)
        self.gateway = self._new_name()
        self._requests.follow(self.gateway)

    async def _adopt(self) -> None:
        for name in await run(self._client, leases.adopt(self._pool, self.gateway)):
            self._adopted.add(name)
            await self._take_over(name, await self._left_by(name))
        for name in list(self._adopted):
            if not self._requests.of_gateway(name):
                await self._end_adoption(name)

    async def _left_by(self, name: str) -> list[Header]:
        """What a gateway left that is not followed here; some is, when it is this one under an older name."""
        headers = await owned_headers(self._client, self._pool, name)
        return [one for one in headers if one.request_id not in self._requests]

    async def _take_over(self, name: str, headers: list[Header]) -> None:
        logger.warning("adopting %d requests of %s", len(headers), name)
        parameters = await self._reads.run(parameters_of, [one.request_id for one in headers])
        self._requests.resume(await rebuild(self._client, self._pool, headers, parameters, self._model))
        self._requests.follow(name)

    async def _end_adoption(self, name: str) -> None:
        """Its last request is recorded. More may have come: what Redis lost is queued again under the name
        that accepted it."""
        if more := await self._left_by(name):
            await self._take_over(name, more)
            return
        self._adopted.discard(name)
        await self._requests.unfollow(name).delete()
        await self._client.delete(keys.OWNED.of(self._pool, name))
        await self._client.zrem(self._leases, name)
