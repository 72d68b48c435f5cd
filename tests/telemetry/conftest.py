"""Real Valkey and Postgres; the telemetry folder runs in the test's own loop or in processes of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.layers import channel_layers
from django.contrib.auth.models import User
from django.test import Client
from redis.asyncio import Redis

from controlplane.telemetry import folder
from controlplane.telemetry.routing import websocket_application
from tests.telemetry.publisher import Publisher
from tests.telemetry.sockets import WebSocket

POOL = "default"
PASSWORD = "correct horse battery staple"
ORIGIN = b"http://localhost"

Connect = Callable[..., WebSocket]


@pytest.fixture
async def publisher(redis_url: str) -> AsyncIterator[Publisher]:
    """Puts telemetry onto the real stream."""
    async with Redis.from_url(redis_url) as redis:
        yield Publisher(redis, POOL)


@pytest.fixture
def running_folder(redis_url: str) -> Callable[[], AbstractAsyncContextManager[None]]:
    """The folder of a web process. A context, so that it starts and stops in the test's own loop."""

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        channel_layers.backends.clear()
        await folder.start(POOL, redis_url)
        try:
            yield
        finally:
            await folder.stop()

    return running


@pytest.fixture
def operator(transactional_db: None) -> User:
    return User.objects.create_user(
        "ines", password=PASSWORD, first_name="Ines", last_name="Aalto", is_staff=True
    )


@pytest.fixture
def client(operator: User) -> Client:
    """A browser in which the operator has signed in."""
    browser = Client()
    browser.force_login(operator)
    return browser


@pytest.fixture
def connect(client: Client) -> Connect:
    """A websocket of that browser; `origin=None` sends none, `cookie=False` is a stranger's."""

    def opened(origin: bytes | None = ORIGIN, cookie: bool = True) -> WebSocket:
        headers = [(b"host", b"localhost")]
        if origin is not None:
            headers.append((b"origin", origin))
        if cookie:
            headers.append((b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode()))
        return WebSocket(websocket_application(), "/ws/live/", headers)

    return opened


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run Django's synchronous code from a test's loop."""
    return await database_sync_to_async(function)()
