"""Django's ORM from the gateway's threads: never on the event loop, connections given back after each job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import close_old_connections

P = ParamSpec("P")
R = TypeVar("R")


class DatabaseThreads:
    """A few threads that may use the ORM."""

    def __init__(self, name: str, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a job that may query, and wait for it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, _with_connection, partial(job, *args, **kwargs))

    def close(self) -> None:
        """Wait for running jobs; start no more."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _with_connection(job: Callable[[], R]) -> R:
    close_old_connections()
    try:
        return job()
    finally:
        close_old_connections()
