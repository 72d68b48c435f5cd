"""When the leading process dies, another one leads, and nothing of the window is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import pytest
from channels.layers import channel_layers, get_channel_layer
from django.db import connection
from redis.asyncio import Redis

from controlplane.telemetry import folder, selectors
from controlplane.telemetry.schema import LiveSnapshot
from scheduler_worker.protocol import keys
from tests.telemetry.builders import T0, class_of, event, policy
from tests.telemetry.conftest import POOL, in_thread
from tests.telemetry.publisher import Publisher

pytestmark = pytest.mark.django_db(transaction=True)

START_TIMEOUT_S = 60
TAKEOVER_S = 3.0
SLACK_S = 2.0  # for a machine that does other things too

Running = Callable[[], AbstractAsyncContextManager[None]]


class WebProcess:
    """A real process with a folder in it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def says(self, word: str) -> None:
        """Wait until it says so."""
        assert self._process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            while (line := await self._process.stdout.readline()).decode().strip() != word:
                assert line, "the process ended"

    async def kill(self) -> None:
        """As the kernel does when memory runs out: no goodbye."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def web_process() -> AsyncIterator[WebProcess]:
    name = await in_thread(lambda: connection.settings_dict["NAME"])
    url = urlsplit(os.environ["TIDEGATE_DATABASE_URL"])._replace(path=f"/{name}")
    environ = {**os.environ, "TIDEGATE_DATABASE_URL": urlunsplit(url)}
    command = (sys.executable, "-m", "tests.telemetry.folder_process", POOL)
    process = WebProcess(await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=environ))
    try:
        yield process
    finally:
        await process.kill()


class Viewer:
    """Receives what the leader publishes to the Channels group."""

    def __init__(self) -> None:
        channel_layers.backends.clear()
        self._layer = get_channel_layer()
        self._channel = ""

    async def look(self) -> None:
        self._channel = await self._layer.new_channel()
        await self._layer.group_add(folder.group_of(POOL), self._channel)

    async def snapshot(self, timeout_s: float = 10) -> LiveSnapshot:
        async with asyncio.timeout(timeout_s):
            message = await self._layer.receive(self._channel)
        return msgspec.json.decode(message["body"], type=LiveSnapshot)

    async def snapshot_with(self, holds: Callable[[LiveSnapshot], bool]) -> LiveSnapshot:
        async with asyncio.timeout(10):
            while not holds(found := await self.snapshot()):
                pass
        return found


async def test_a_follower_takes_over_when_the_leader_is_killed(publisher: Publisher, redis_url: str) -> None:
    await publisher.announce(policy())
    await publisher.requests(5)
    await publisher.redis.set(keys.TELEMETRY_WATCHED.of(POOL), b"1", ex=120)
    viewer = Viewer()
    async with AsyncExitStack() as stack:
        leader = await stack.enter_async_context(web_process())
        await leader.says("leads 5")
        follower = await stack.enter_async_context(web_process())
        await follower.says("follows 5")
        await viewer.look()
        await publisher.requests(4)
        before = await viewer.snapshot_with(lambda one: class_of(one).num_judged == 9)
        await follower.says("follows 9")
        # The stream's past is gone: whoever takes over must have it already.
        await publisher.redis.xtrim(keys.TELEMETRY.of(POOL), maxlen=0)
        await leader.kill()
        killed_at = await publisher.now()
        after = await viewer.snapshot_with(lambda one: one.at > killed_at)
    assert class_of(after).ttft == class_of(before).ttft
    assert after.at - killed_at < TAKEOVER_S + SLACK_S


async def test_a_leader_that_stops_orderly_is_followed_at_once(
    running_folder: Running, redis_url: str
) -> None:
    async with running_folder():
        async with asyncio.timeout(10):
            while not (running := folder.current()) or not running.leads:
                await asyncio.sleep(0.05)
    async with Redis.from_url(redis_url) as redis:
        assert await redis.get(keys.TELEMETRY_LEADER.of(POOL)) is None


async def test_a_process_that_starts_later_has_the_past_from_the_roll_ups(
    publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    await publisher.requests(6, age_s=50)
    async with running_folder():
        await _until(lambda: in_thread(lambda: selectors.rollups(POOL, T0 - 1e9)))
    await publisher.redis.delete(keys.TELEMETRY.of(POOL))
    async with running_folder():
        running = await _until(_restored)
        points, snapshot = running.fold.points, running.fold.snapshot(running.now(), 1)
    assert [point.ttft["high"].num for point in points] == [6]
    assert class_of(snapshot).num_judged == 6


async def test_a_process_that_starts_later_knows_why_a_promise_is_broken(
    publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    at = await publisher.now() - T0
    await publisher.worker(events=(event(at - 1, "not_preempted", "class_may_not_yield"),))
    await publisher.requests(30, ttft_s=0.5)
    async with running_folder():
        before = (await _until(_broken)).verdict
        await _until(lambda: publisher.redis.exists(keys.TELEMETRY_BROKEN.of(POOL)))
    await publisher.redis.delete(keys.TELEMETRY.of(POOL))
    await publisher.requests(30, ttft_s=0.5)
    await publisher.worker()
    async with running_folder():
        after = (await _until(_broken)).verdict
    assert len(before.causes) == 1
    assert (after.since, after.causes) == (before.since, before.causes)


async def _broken() -> LiveSnapshot | None:
    running = await _restored()
    snapshot = running.fold.snapshot(running.now(), 1) if running else None
    return snapshot if snapshot is not None and snapshot.verdict.kind == "broken" else None


async def _restored() -> folder.Folder | None:
    running = folder.current()
    return running if running is not None and running.restored else None


async def _until(found: Callable[[], Any]) -> Any:
    """What an awaitable finds, as soon as it finds something."""
    async with asyncio.timeout(15):
        while not (something := await found()):
            await asyncio.sleep(0.1)
    return something
