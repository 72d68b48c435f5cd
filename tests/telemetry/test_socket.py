"""`/ws/live/` against a real Valkey: who gets in, what comes, and what happens to a slow client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session

from controlplane.telemetry import consumers, folder
from tests.telemetry.builders import policy
from tests.telemetry.conftest import Connect, in_thread
from tests.telemetry.publisher import Publisher
from tests.telemetry.sockets import TIMEOUT_S, WebSocket

pytestmark = pytest.mark.django_db(transaction=True)

Running = Callable[[], AbstractAsyncContextManager[None]]


async def receive(socket: WebSocket) -> dict[str, Any]:
    return dict(json.loads(await socket.text()))


async def snapshot_with(socket: WebSocket, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first snapshot of which something holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            message = await receive(socket)
            if message["type"] == "snapshot" and holds(message):
                return message


async def test_a_stranger_is_turned_away_with_4401(connect: Connect) -> None:
    socket = connect(cookie=False)
    await socket.connect()
    assert await socket.close_code() == 4401


async def test_an_account_that_is_no_operators_is_turned_away(connect: Connect, operator: User) -> None:
    await in_thread(lambda: User.objects.filter(pk=operator.pk).update(is_staff=False))
    socket = connect()
    await socket.connect()
    assert await socket.close_code() == 4401


@pytest.mark.parametrize("origin", [b"https://evil.example", None])
async def test_a_page_of_another_origin_is_refused_before_it_is_accepted(
    connect: Connect, origin: bytes | None
) -> None:
    assert not await connect(origin=origin).connect()


async def test_hello_and_history_come_before_snapshots(
    connect: Connect, publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    async with running_folder():
        socket = connect()
        await socket.connect()
        kinds = [(await receive(socket))["type"] for _ in range(3)]
        await socket.disconnect()
    assert kinds == ["hello", "history", "snapshot"]


async def test_hello_says_who_looks_at_what(connect: Connect, running_folder: Running) -> None:
    async with running_folder():
        socket = connect()
        await socket.connect()
        hello = await receive(socket)
        await socket.disconnect()
    assert (hello["pool"], hello["operator"], hello["interval_s"]) == ("default", "Ines Aalto", 0.25)


async def test_what_a_gateway_reports_is_on_the_page(
    connect: Connect, publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    async with running_folder():
        socket = connect()
        await socket.connect()
        await publisher.worker()
        await publisher.requests(7, ttft_s=0.05)
        snapshot = await snapshot_with(socket, lambda one: one["classes"][0]["num_judged"] == 7)
        await socket.disconnect()
    assert snapshot["classes"][0]["ttft"] == {"p50": 0.05, "p95": 0.05, "p99": 0.05, "num": 7}


async def test_snapshots_come_four_times_a_second_while_someone_looks(
    connect: Connect, running_folder: Running
) -> None:
    async with running_folder():
        socket = connect()
        await socket.connect()
        first = await snapshot_with(socket, lambda one: True)
        second = await snapshot_with(socket, lambda one: True)
        third = await snapshot_with(socket, lambda one: True)
        await socket.disconnect()
    # By the server's own clock, and with room for a busy machine: at the unwatched rate two take 4 s.
    assert third["at"] - first["at"] < 3.5
    assert first["number"] < second["number"] < third["number"]


async def test_when_sources_stop_snapshots_go_on_and_their_ages_grow(
    connect: Connect, publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    await publisher.worker()
    await publisher.requests(1)
    async with running_folder():
        socket = connect()
        await socket.connect()
        early = await snapshot_with(socket, lambda one: one["gateways_at"] is not None)
        late = await snapshot_with(socket, lambda one: one["at"] >= early["at"] + 2.5)
        await socket.disconnect()
    assert late["gateways_at"] == early["gateways_at"]
    assert [worker["state"] for worker in late["workers"]] == ["gone"]  # silent, and it never had a lease


async def test_a_client_gets_each_point_once(
    connect: Connect, publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    await publisher.requests(3, age_s=45)
    await publisher.requests(4, age_s=35)
    async with running_folder():
        await _until(lambda: len(_points()) == 2)
        socket = connect()
        await socket.connect()
        await receive(socket)
        history = await receive(socket)
        await publisher.requests(5, age_s=20)
        snapshot = await snapshot_with(socket, lambda one: bool(one["new_points"]))
        later = await snapshot_with(socket, lambda one: True)
        await socket.disconnect()
    nums = [point["ttft"]["high"]["num"] for point in (*history["points"], *snapshot["new_points"])]
    assert (nums, later["new_points"]) == ([3, 4, 5], [])


def _points() -> tuple[Any, ...]:
    running = folder.current()
    return running.points_after(0) if running else ()


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.05)


async def test_after_signing_out_the_socket_is_closed(
    connect: Connect, running_folder: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "CHECK_SESSION_EVERY_S", 0.5)
    async with running_folder():
        socket = connect()
        await socket.connect()
        await in_thread(lambda: Session.objects.all().delete())
        code = await socket.close_code()
    assert code == 4401


async def test_a_slow_client_skips_snapshots_and_none_queues_up(
    connect: Connect, running_folder: Running
) -> None:
    """A client that takes a while for each message gets the newest one then, not the next in line."""
    async with running_folder():
        socket = SlowSocket(operator_scope(await _operator()))
        async with socket:
            before = (await socket.take(3))[-1]  # after hello and history
            await asyncio.sleep(2.5)  # ten snapshots pass while the client does not read
            after = (await socket.take(2))[-1]
    # One was already being sent; in a queue the one after it would be half a second younger than the first.
    assert after["at"] - before["at"] > 1.25


async def _operator() -> User:
    return await in_thread(lambda: User.objects.get(username="ines"))


def operator_scope(user: User) -> dict[str, Any]:
    return {"type": "websocket", "path": "/ws/live/", "headers": [], "user": user}


class SlowSocket:
    """A server's end of a socket whose `send` waits until the client takes the message, as with full
    buffers."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=1)

    async def __aenter__(self) -> SlowSocket:
        application = consumers.LiveConsumer.as_asgi()
        await self._incoming.put({"type": "websocket.connect"})
        self._task = asyncio.create_task(application(self._scope, self._incoming.get, self._send))
        assert (await self._outgoing.get())["type"] == "websocket.accept"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._incoming.put({"type": "websocket.disconnect", "code": 1000})
        async with asyncio.timeout(TIMEOUT_S):
            await self._task

    async def _send(self, message: dict[str, Any]) -> None:
        await self._outgoing.put(message)
        while not self._outgoing.empty():
            await asyncio.sleep(0.01)

    async def take(self, num: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(TIMEOUT_S):
            return [json.loads((await self._outgoing.get())["text"]) for _ in range(num)]
