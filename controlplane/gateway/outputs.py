"""Reads one gateway's output stream and hands its rows to the requests they belong to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis.asyncio
from redis.exceptions import RedisError

from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Frame, FrameRow, ProtocolError, Requeued

logger = logging.getLogger(__name__)
BLOCK_MS: Final = 500
MAX_ENTRIES: Final = 500
RETRY_S: Final = 0.2
TURN_S: Final = 0.002  # other work of the event loop has its turn after so long

OnRow = Callable[[Frame, FrameRow], bool]  # whether the row's request is followed
OnRequeued = Callable[[Requeued], None]


class OutputReader:
    """One stream, in order. `gateway` may be a dead one, whose requests were adopted; with `is_ours` unset
    another gateway adopted this one's, and decides what is kept.

    An entry is kept until no finishing row in it, nor before it, waits for its completion record to be safe:
    from these rows and the published tokens another gateway can finish what this one began.
    """

    def __init__(
        self,
        pool: str,
        gateway: str,
        client: redis.asyncio.Redis,
        on_row: OnRow,
        on_requeued: OnRequeued,
        last_id: str = "0-0",
    ) -> None:
        self.gateway = gateway
        self.is_ours = True
        self._client = client
        self._key = keys.OUTPUT.of(pool, gateway)
        self._on_row = on_row
        self._on_requeued = on_requeued
        self._last_id = last_id
        self._finishing: dict[str, str] = {}
        self._trimmed_to = ""
        self._turn_ends_at = 0.0
        self._is_stopped = False

    async def run(self) -> None:
        """Read until stopped or cancelled; a Redis that is away is waited for."""
        while not self._is_stopped:
            try:
                await self.read_once()
            except RedisError as error:
                logger.error("the output stream of %s cannot be read: %s", self.gateway, error)
                await asyncio.sleep(RETRY_S)

    def stop(self) -> None:
        """End with the read under way, also where a cancellation is lost in it."""
        self._is_stopped = True

    async def read_once(self) -> int:
        """Handle what is there, waiting up to `BLOCK_MS` for the first; how many entries there were."""
        reply = await self._client.xread({self._key: self._last_id}, count=MAX_ENTRIES, block=BLOCK_MS)
        entries = _entries(reply)
        self._turn_ends_at = time.perf_counter() + TURN_S
        for entry_id, fields in entries:
            self._last_id = entry_id.decode()
            await self._handle(fields)
        return len(entries)

    def recorded(self, request_id: str) -> None:
        """The completion of a request is safe: its finishing row is not needed any more."""
        self._finishing.pop(request_id, None)

    async def trim(self) -> None:
        """Drop the entries that nobody needs."""
        oldest = next(iter(self._finishing.values()), self._last_id)
        if oldest != self._trimmed_to:
            await self._client.xtrim(self._key, minid=oldest, approximate=True)
            self._trimmed_to = oldest

    async def delete(self) -> None:
        """The stream is of no more use."""
        await self._client.delete(self._key)

    async def _handle(self, fields: Mapping[bytes, bytes]) -> None:
        try:
            entry = scripts.read_output(fields)
        except ProtocolError as error:
            logger.error("an entry of the output stream cannot be read: %s", error)
            return
        if isinstance(entry, Requeued):
            self._on_requeued(entry)
            return
        for row in entry.rows:
            if time.perf_counter() > self._turn_ends_at:
                await self._let_others_run()
            if row.finish:
                self._finishing[row.request_id] = self._last_id
            if not self._on_row(entry, row):
                self._finishing.pop(row.request_id, None)

    async def _let_others_run(self) -> None:
        await asyncio.sleep(0)
        self._turn_ends_at = time.perf_counter() + TURN_S


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """XREAD's entries of the only stream, from RESP2's list or RESP3's map."""
    if not reply:
        return []
    if isinstance(reply, dict):
        found = next(iter(reply.values()))
        return list(found[0] if found and isinstance(found[0], list) else found)
    return list(reply[0][1])
