"""The background task of each web process: reads the stream, folds it, and, where it leads, publishes.

Every process folds, so that a follower that takes over has the whole window; one leads, publishes snapshots
to the Channels group and stores roll-ups. `start(pool)` and `stop()` belong into the ASGI lifespan.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import Error as DatabaseFailure
from redis.asyncio import Redis
from redis.exceptions import RedisError

from controlplane.telemetry import selectors, services
from controlplane.telemetry.buckets import POINT_S, Judged, Rollup, start_of
from controlplane.telemetry.decisions import Render
from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.leadership import Leadership
from controlplane.telemetry.promise import Ended
from controlplane.telemetry.schema import Point
from controlplane.telemetry.source import TelemetrySource
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys, reasons
from scheduler_worker.protocol.messages import GatewayTelemetry, WorkerTelemetry

logger = logging.getLogger(__name__)

WATCHED_INTERVAL_S: Final = 0.25
UNWATCHED_INTERVAL_S: Final = 0.5
UNWATCHED_PUBLISH_S: Final = 2.0
REFRESH_S: Final = 1.0
BUDGET_REFRESH_S: Final = 60.0
RESTORE_S: Final = 6 * 3600.0
RETRY_S: Final = 1.0
STOP_TIMEOUT_S: Final = 3.0
MAX_UNSTORED: Final = 360

T = TypeVar("T")
Message = GatewayTelemetry | WorkerTelemetry


def group_of(pool: str) -> str:
    """The Channels group that a pool's snapshots go to."""
    return f"live.{pool}"


class Archive:
    """Roll-ups in Postgres. Without it, history and budget are what this process has seen."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    async def rollups(self, since: float) -> list[Rollup]:
        return await self._try(lambda: selectors.rollups(self._pool, since), [])

    async def colors(self, class_ids: Sequence[str]) -> dict[str, int]:
        return await self._try(lambda: services.colors(self._pool, class_ids), {})

    async def budget(self, now: float) -> tuple[Mapping[Judged, Ended], float] | None:
        return await self._try(lambda: selectors.ended_in_budget(self._pool, now), None)

    async def store(self, rollups: Iterable[Rollup]) -> bool:
        def write() -> bool:
            services.store(self._pool, rollups)
            return True

        return await self._try(write, False)

    @staticmethod
    async def _try(query: Callable[[], T], otherwise: T) -> T:
        try:
            return await database_sync_to_async(query, thread_sensitive=False)()
        except DatabaseFailure as error:
            logger.warning("Postgres does not answer; telemetry goes on without its history: %s", error)
            return otherwise


@dataclass(slots=True)
class _Due:
    """When something periodic is to be done next."""

    every_s: float
    at: float = 0.0

    def is_now(self, now: float) -> bool:
        if now < self.at:
            return False
        self.at = now + self.every_s
        return True


class Folder:
    """Folds one pool's telemetry for as long as `run` runs."""

    def __init__(self, redis: Redis, pool: str, name: str, render: Render = reasons.render) -> None:
        self.pool = pool
        self.leads = False
        self.restored = False
        self.fold = TelemetryFold(render)
        self._source = TelemetrySource(redis, pool)
        self._archive = Archive(pool)
        self._leadership = Leadership(redis, keys.TELEMETRY_LEADER.of(pool), name)
        self._refresh_due = _Due(REFRESH_S)
        self._budget_due = _Due(BUDGET_REFRESH_S)
        self._publish_due = _Due(UNWATCHED_PUBLISH_S)
        self._unstored: deque[Rollup] = deque(maxlen=MAX_UNSTORED)
        self._beside: dict[str, asyncio.Task[None]] = {}

    def now(self) -> float:
        """Redis's time."""
        return self._source.clock.now()

    def points_after(self, at: float) -> tuple[Point, ...]:
        """The closed points that end later than `at`, oldest first."""
        return tuple(point for point in self.fold.points if point.at > at)

    async def mark_watched(self) -> None:
        """Someone looks: publish at the full rate for the next seconds."""
        await self._source.mark_watched()

    async def run(self) -> None:
        """Restore, then fold until cancelled."""
        await self._restore()
        while True:
            watched = await self.step()
            await asyncio.sleep(WATCHED_INTERVAL_S if watched else UNWATCHED_INTERVAL_S)

    async def _restore(self) -> None:
        """History from the roll-ups up to where the stream's tail begins, then the tail as if it came now."""
        await self._refresh()
        tail = [message async for message in self._source.read_new()]
        stored = await self._archive.rollups(self.now() - RESTORE_S)
        begin = start_of(tail[0].at) + POINT_S if tail else self.now()
        self.fold.restore(stored, before=max(begin, self.fold.judged_otherwise_until(stored)))
        self._replay(tail)
        self.fold.resume(await self._source.broken())
        await self._refresh_budget()
        self.restored = True

    def _replay(self, tail: list[Message]) -> None:
        tick = _Due(REFRESH_S)
        for message in tail:
            self.fold.take(message)
            if tick.is_now(message.at):
                self._tick(message.at)

    def _tick(self, now: float) -> None:
        self.fold.tick(now)
        self._unstored.extend(self.fold.close_rollups(now))

    async def step(self) -> bool:
        """Read, fold, and publish where this process leads; returns whether anyone watches."""
        async for message in self._source.read_new():
            self.fold.take(message)
            await asyncio.sleep(0)  # streams have their turn: half a second of a busy fleet takes 10 ms and more
        self.leads = await self._leadership.hold()
        watched = await self._source.is_watched()
        if self._refresh_due.is_now(self.now()):
            await self._refresh()
            self._tick(self.now())
            if self.leads:
                await self._source.keep_broken(self.fold.broken_halves())
        if self._budget_due.is_now(self.now()):
            self._do_beside("budget", self._refresh_budget)
        if self.leads:
            await self._lead(watched)
        else:
            self._follow()
        return watched

    async def _refresh(self) -> None:
        await self._source.set_clock()
        if found := await self._source.new_policy():
            await self._set_policy(*found)
        self.fold.set_workers(*await self._source.workers())

    async def _set_policy(self, version: int, policy: Policy) -> None:
        colors = await self._archive.colors([one.id for one in policy.classes])
        self.fold.set_policy(version, policy, colors, at=self.now())

    async def _refresh_budget(self) -> None:
        if budget := await self._archive.budget(self.now()):
            self.fold.set_budget(*budget)

    def _do_beside(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something with the database beside the loop: a slow one must not make the figures old."""
        if name not in self._beside or self._beside[name].done():
            self._beside[name] = asyncio.create_task(work())

    async def _lead(self, watched: bool) -> None:
        if self._unstored:
            self._do_beside("store", self._store)
        if watched or self._publish_due.is_now(self.now()):
            await self.publish()

    async def publish(self) -> None:
        """Send a snapshot of now to whoever watches, in whatever process."""
        now = self.now()
        # Milliseconds as the number: it rises over a change of leaders too.
        snapshot = self.fold.snapshot(now, number=int(now * 1000))
        message = {"type": "live.snapshot", "body": msgspec.json.encode(snapshot)}
        await get_channel_layer().group_send(group_of(self.pool), message)

    async def _store(self) -> None:
        due = list(self._unstored)
        self._unstored.clear()
        if not await self._archive.store(due):
            self._unstored.extendleft(reversed(due))
            await asyncio.sleep(RETRY_S)

    def _follow(self) -> None:
        """Keep only what a leader that dies now could not have stored."""
        while self._unstored and self._unstored[0].started_at < self.now() - 6 * POINT_S:
            self._unstored.popleft()

    async def close(self) -> None:
        """Let another process lead, and finish what is being stored."""
        await self._leadership.give_up()
        if working := [task for task in self._beside.values() if not task.done()]:
            await asyncio.wait(working, timeout=STOP_TIMEOUT_S)
            await _end(working)


class _Running:
    """The folder of this process, restarted when it fails."""

    def __init__(self, pool: str, redis_url: str) -> None:
        self._pool = pool
        self._redis = Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=5)
        self._name = secrets.token_hex(8)
        self.folder: Folder | None = None
        self._task = asyncio.create_task(self._supervise(), name=f"telemetry-{pool}")

    async def _supervise(self) -> None:
        while True:
            folder = self.folder = Folder(self._redis, self._pool, self._name)
            try:
                await folder.run()
            except (RedisError, OSError) as error:
                logger.warning("Redis does not answer; telemetry starts over in %g s: %s", RETRY_S, error)
            except Exception:
                logger.exception("the telemetry folder failed; it starts over in %g s", RETRY_S)
            await asyncio.sleep(RETRY_S)

    async def stop(self) -> None:
        await _end([self._task])
        if self.folder is not None:
            await _quietly(self.folder.close())
        await self._redis.aclose()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel until they have ended: a task that waits for a thread may miss the first time."""
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=1.0)


async def _quietly(closing: Awaitable[None]) -> None:
    """A lock that cannot be given up expires by itself."""
    try:
        await closing
    except (RedisError, OSError) as error:
        logger.info("telemetry stopped without giving up its lock: %s", error)


_running: _Running | None = None


async def start(pool: str, redis_url: str | None = None) -> None:
    """Start folding a pool's telemetry in this process."""
    global _running
    if _running is not None:
        raise RuntimeError("telemetry runs in this process already; stop it first")
    if redis_url is None:
        from django.conf import settings

        redis_url = settings.TIDEGATE.redis_url
    _running = _Running(pool, redis_url)


async def stop() -> None:
    """Stop folding; another process leads at once."""
    global _running
    if _running is not None:
        running, _running = _running, None
        await running.stop()


def current() -> Folder | None:
    """This process's folder, while one runs."""
    return None if _running is None else _running.folder
