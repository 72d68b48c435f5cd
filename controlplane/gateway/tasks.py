"""The gateway's loops and one-off jobs: none fails in silence, all end with the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

logger = logging.getLogger(__name__)
RESTART_S: Final = 0.5
CANCEL_AGAIN_S: Final = 0.2


class Tasks:
    """Starts jobs on the running loop and keeps them until they end."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a job beside the others; a failure is logged."""
        task = asyncio.get_running_loop().create_task(job)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def keep(self, name: str, job: Callable[[], Awaitable[None]]) -> asyncio.Task[Any]:
        """Run a loop that is started again when it fails: one bad message must not end the gateway.

        One that ends by itself has ended: started again it might end at once, and nothing else would ever run.
        """
        return self.spawn(_supervised(name, job))

    async def stop(self) -> None:
        """Cancel all and wait for them.

        A cancellation that comes just as a library's own timeout ends can be taken for that timeout, and a loop
        then goes on: it is cancelled until it ends.
        """
        while self._running:
            for task in list(self._running):
                task.cancel()
            await asyncio.wait(list(self._running), timeout=CANCEL_AGAIN_S)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a job of the gateway failed", exc_info=error)


async def every(interval_s: float, job: Callable[[], Awaitable[None]]) -> None:
    """Run a job, wait, and again."""
    while True:
        await job()
        await asyncio.sleep(interval_s)


async def _supervised(name: str, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await job()
        except Exception:
            logger.exception("%s failed; starting it again", name)
            await asyncio.sleep(RESTART_S)
