"""Telemetry goes on when something that it needs does not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from django.db import OperationalError

from controlplane.telemetry import folder, selectors, services
from scheduler_worker.protocol import keys
from tests.telemetry.builders import class_of, policy
from tests.telemetry.conftest import POOL
from tests.telemetry.publisher import Publisher
from tests.telemetry.test_takeover import _restored, _until

pytestmark = pytest.mark.django_db(transaction=True)

Running = Callable[[], AbstractAsyncContextManager[None]]


async def sees(num: int) -> bool:
    """Whether the page shows so many requests of high by now."""
    running = folder.current()
    if running is None or not running.fold.policy:
        return False
    return class_of(running.fold.snapshot(running.now(), 1)).num_judged == num


async def test_without_postgres_the_page_is_live(
    publisher: Publisher, running_folder: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> None:
        raise OperationalError("the server closed the connection")

    for module, name in ((selectors, "rollups"), (selectors, "ended_in_budget"), (services, "colors")):
        monkeypatch.setattr(module, name, down)
    await publisher.announce(policy())
    async with running_folder():
        await publisher.requests(3)
        assert await _until(lambda: sees(3))


async def test_after_redis_dropped_every_connection_the_page_is_live_again(
    publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    await publisher.requests(3)
    async with running_folder():
        await _until(lambda: sees(3))
        await publisher.redis.client_kill_filter(_type="normal")
        await publisher.requests(2)
        assert await _until(lambda: sees(5))


async def test_a_message_that_cannot_be_read_is_left_out_and_told(
    publisher: Publisher, running_folder: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.announce(policy())
    await publisher.redis.xadd(keys.TELEMETRY.of(POOL), {b"kind": b"gateway", b"data": b"\x93nonsense"})
    await publisher.requests(2)
    with caplog.at_level(logging.WARNING, "controlplane.telemetry.source"):
        async with running_folder():
            await _until(lambda: sees(2))
    assert "not a GatewayTelemetry" in caplog.text


async def test_a_policy_that_cannot_be_read_leaves_the_last_one(
    publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    async with running_folder():
        running = await _until(_restored)
        await publisher.redis.set(keys.POLICY.of(POOL), b"nonsense")
        await publisher.requests(2)
        await _until(lambda: sees(2))
        assert running.fold.policy_version == 41


async def test_a_new_policy_is_on_the_page_within_its_next_look(
    publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    async with running_folder():
        running = await _until(_restored)
        only = {"id": "only", "rank": 0, "weight": 1, "slo": {"ttft_s": 1, "tpot_s": 1}}
        await publisher.announce(policy(only), 42)

        async def changed() -> bool:
            return running.fold.policy_version == 42

        await _until(changed)
        snapshot = running.fold.snapshot(running.now(), 1)
    assert [one.id for one in snapshot.classes] == ["only"]
