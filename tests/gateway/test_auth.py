"""Keys are looked up again before their facts are too old, and are never trusted for longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.gateway import auth
from controlplane.gateway.auth import CACHE_S, RENEW_BEFORE_S, Keys
from controlplane.gateway.errors import Unauthenticated
from controlplane.tenants.selectors import KeyInfo

KEY = b"Bearer secret"
INFO = KeyInfo(
    key_id=1,
    tenant_id=1,
    tenant_slug="t",
    tenant_weight=1.0,
    default_class="",
    allowed_classes=frozenset(),
    requests_per_minute=None,
    tokens_per_minute=None,
    retention="terminal",
    retention_days=0,
)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Database:
    """Looks keys up when it is let."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, find: Callable[[str], KeyInfo | None], token: str) -> KeyInfo | None:
        self.num_asked += 1
        await self.open.wait()
        return find(token)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


async def test_nobody_waits_for_the_renewal_of_a_key_in_use(clock: Clock) -> None:
    database: Any = Database()
    keys = Keys(database, lambda _: INFO)
    await keys.authenticate(KEY)
    clock.now += CACHE_S - RENEW_BEFORE_S / 2
    database.open.clear()
    for _ in range(3):
        assert await asyncio.wait_for(keys.authenticate(KEY), 1) is INFO
        await asyncio.sleep(0)
    assert database.num_asked == 2
    database.open.set()


async def test_a_revoked_key_is_refused_once_the_facts_are_too_old(clock: Clock) -> None:
    found: list[KeyInfo | None] = [INFO]
    database: Any = Database()
    keys = Keys(database, lambda _: found[0])
    await keys.authenticate(KEY)
    found[0] = None
    clock.now += CACHE_S + 0.1
    with pytest.raises(Unauthenticated):
        await keys.authenticate(KEY)


async def test_a_renewal_that_fails_is_tried_again_by_who_needs_it(clock: Clock) -> None:
    def fails(_: str) -> KeyInfo | None:
        raise OSError("away")

    database: Any = Database()
    keys = Keys(database, lambda _: INFO)
    await keys.authenticate(KEY)
    keys._find = fails
    clock.now += CACHE_S - RENEW_BEFORE_S / 2
    assert await keys.authenticate(KEY) is INFO
    await asyncio.sleep(0.01)
    clock.now += RENEW_BEFORE_S
    with pytest.raises(OSError, match="away"):
        await keys.authenticate(KEY)
