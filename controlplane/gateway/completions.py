"""How requests ended, on its way to Postgres: batches through Celery, at least once, never dropped.

What Redis keeps of a request is deleted only when its record is with the broker *and* its last row has come:
until then another gateway can take over.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import redis.asyncio
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from controlplane.common.redis import run
from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import CompletionRecord, encode

from .live import LiveRequest

logger = logging.getLogger(__name__)
FLUSH_S: Final = 0.2
RETRY_S: Final = 1.0
MAX_BATCH: Final = 200


class Completions:
    """Collects records; `on_recorded` is called when a request's record is with the broker."""

    def __init__(
        self,
        pool: str,
        client: redis.asyncio.Redis,
        send: Callable[[list[str]], Any],
        on_recorded: Callable[[LiveRequest], None],
    ) -> None:
        self._pool = pool
        self._client = client
        self._send = send
        self._on_recorded = on_recorded
        self._records: list[tuple[LiveRequest, CompletionRecord]] = []
        self._to_forget: list[LiveRequest] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="completions")

    @property
    def num_open(self) -> int:
        """Records that are not with the broker yet."""
        return len(self._records)

    def add(self, live: LiveRequest, record: CompletionRecord) -> None:
        """A request ended."""
        self._records.append((live, record))

    def forget(self, live: LiveRequest) -> None:
        """Recorded, and nobody will write to its keys any more."""
        self._to_forget.append(live)

    async def run(self) -> None:
        """Flush until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S if await self.flush() else RETRY_S)

    async def flush(self) -> bool:
        """Send what is there; False when broker or Redis did not take it, which is tried again."""
        while self._records:
            batch = self._records[:MAX_BATCH]
            if not await self._sent([record for _, record in batch]):
                return False
            del self._records[: len(batch)]
            for live, _ in batch:
                self._on_recorded(live)
        return await self._forget()

    def close(self) -> None:
        """Stop the thread."""
        self._executor.shutdown(wait=False)

    async def _sent(self, records: list[CompletionRecord]) -> bool:
        texts = [base64.b64encode(encode(record)).decode() for record in records]
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._send, texts)
        except (KombuError, RedisError, OSError) as error:
            logger.error("%d completion records wait for the broker: %s", len(self._records), error)
            return False
        return True

    async def _forget(self) -> bool:
        by_gateway: dict[str, list[str]] = defaultdict(list)
        batch = list(self._to_forget)
        for live in batch:
            by_gateway[live.gateway].append(live.request_id)
        try:
            for gateway, ids in by_gateway.items():
                await self._forget_those(gateway, ids)
        except RedisError as error:
            logger.error("finished requests are still in Redis: %s", error)
            return False
        del self._to_forget[: len(batch)]
        return True

    async def _forget_those(self, gateway: str, ids: list[str]) -> None:
        await run(self._client, scripts.forget(self._pool, gateway, ids))
