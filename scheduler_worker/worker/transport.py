"""Redis as a worker uses it: one connection per thread, no hidden retries, outages waited out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry

from scheduler_worker.protocol.scripts import Call
from scheduler_worker.worker.clock import RedisClock

T = TypeVar("T")
logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S: Final = 4.0
FIRST_BACKOFF_S: Final = 0.05
MAX_BACKOFF_S: Final = 1.0
OUTAGES: Final = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    TryAgainError,
    OutOfMemoryError,
)


class Stopped(Exception):
    """The worker is ending and no longer waits for Redis."""


def connect(url: str) -> redis.Redis:
    """A connection that fails fast and repeats no command by itself: its user knows what may be repeated."""
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
        single_connection_client=False,
    )


def run(client: redis.Redis, call: Call[T]) -> T:
    """Run a script by its SHA; its text travels only when the server does not know it."""
    num_keys, rest = len(call.keys), (*call.keys, *call.args)
    try:
        reply = client.evalsha(call.script.sha, num_keys, *rest)
    except NoScriptError:
        reply = client.eval(call.script.text, num_keys, *rest)
    return call.parse(reply)


def synchronize(client: redis.Redis, clock: RedisClock) -> None:
    """Measure the clock's offset to Redis."""
    sent = time.monotonic()
    seconds, micros = client.time()
    clock.adjust(seconds + micros / 1e6, sent, time.monotonic())


def persist(what: str, action: Callable[[], T], stop: threading.Event) -> T:
    """Do a repeatable `action` through outages, with growing pauses; raises `Stopped` once asked to stop."""
    pause_s = FIRST_BACKOFF_S
    while True:
        try:
            result = action()
        except OUTAGES as error:
            if pause_s == FIRST_BACKOFF_S:
                logger.warning("redis is unreachable, %s waits: %s", what, error)
            if stop.wait(pause_s):
                raise Stopped(what) from error
            pause_s = min(2 * pause_s, MAX_BACKOFF_S)
        else:
            if pause_s != FIRST_BACKOFF_S:
                logger.warning("redis is back, %s goes on", what)
            return result
