"""The process's connection to Redis for synchronous code: Django's views, services and Celery tasks."""

from __future__ import annotations

from functools import cache
from typing import Final, TypeVar

import redis
from django.conf import settings

from controlplane.common.redis import run_sync
from scheduler_worker.protocol.scripts import Call

T = TypeVar("T")
TIMEOUT_S: Final = 5.0


@cache
def redis_client() -> redis.Redis:
    """One pooled, thread-safe client per process; replies stay bytes. Raises `redis.RedisError` when used."""
    return redis.Redis.from_url(
        settings.TIDEGATE.redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
    )


def run_script(call: Call[T]) -> T:
    """Run one of the protocol's scripts."""
    return run_sync(redis_client(), call)
