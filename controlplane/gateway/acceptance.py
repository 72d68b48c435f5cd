"""Accepted is durable: rows are committed, many at once, before any of them is queued.

While a commit runs, later requests gather for the next: the load sets the batch's size. What was committed is queued
beside the next commit.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import redis.asyncio
from django.db import DataError, IntegrityError
from django.db.utils import Error as DatabaseError
from redis.exceptions import RedisError

from controlplane.inference.services import AcceptedRequest, record_accepted
from scheduler_worker.protocol import scripts

from .database import DatabaseThreads
from .errors import ApiError, InternalError, Unavailable
from .redis_scripts import run_many

logger = logging.getLogger(__name__)
MAX_BATCH: Final = 256
ENQUEUE_ATTEMPTS: Final = 3
RETRY_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Waiting:
    row: AcceptedRequest
    done: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: ApiError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Acceptance:
    """Takes requests in; `accept` returns once the request is committed and queued."""

    def __init__(
        self,
        pool: str,
        client: redis.asyncio.Redis,
        threads: DatabaseThreads,
        record: Callable[[Sequence[AcceptedRequest]], None] = record_accepted,
    ) -> None:
        self._pool = pool
        self._client = client
        self._threads = threads
        self._record = record
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self.num_commits = 0

    async def accept(self, row: AcceptedRequest) -> None:
        """Commit and queue; raises `Unavailable` when Postgres or Redis does not answer."""
        one = _Waiting(row, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._arrived.set()
        await one.done

    async def run(self) -> None:
        """The writer; runs until cancelled."""
        async with asyncio.TaskGroup() as queueing:
            before: asyncio.Task[None] | None = None
            while True:
                await self._arrived.wait()
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                if not self._waiting:
                    self._arrived.clear()
                committed = await self._commit(batch)
                if before is not None:
                    await before
                before = queueing.create_task(self._enqueue(committed))

    async def _commit(self, batch: list[_Waiting]) -> list[_Waiting]:
        """The committed ones; of a batch that the database refuses, each is tried alone."""
        try:
            await self._threads.run(self._record, [one.row for one in batch])
        except (DataError, IntegrityError, ValueError) as error:
            return await self._commit_alone(batch, error)
        except DatabaseError as error:
            logger.error("requests could not be recorded: %s", error)
            _fail_all(batch, Unavailable("The database does not answer. Try again.", retry_after_s=1.0))
            return []
        self.num_commits += 1
        return batch

    async def _commit_alone(self, batch: list[_Waiting], error: Exception) -> list[_Waiting]:
        if len(batch) == 1:
            logger.exception("a request could not be recorded", exc_info=error)
            batch[0].fail(InternalError())
            return []
        return [one for each in batch for one in await self._commit([each])]

    async def _enqueue(self, batch: list[_Waiting]) -> None:
        """Repeating is safe: a request that is queued already is left alone."""
        calls = [scripts.enqueue(self._pool, one.row.header, one.row.payload) for one in batch]
        for attempt in range(ENQUEUE_ATTEMPTS if batch else 0):
            try:
                await run_many(self._client, calls)
            except RedisError as error:
                logger.error("requests could not be queued (attempt %d): %s", attempt + 1, error)
                await asyncio.sleep(RETRY_S)
            else:
                for one in batch:
                    one.succeed()
                return
        _fail_all(batch, Unavailable("The queue does not answer. Try again.", retry_after_s=1.0))


def _fail_all(batch: Sequence[_Waiting], error: ApiError) -> None:
    for one in batch:
        one.fail(error)
