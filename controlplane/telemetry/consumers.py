"""`/ws/live/`: hello, history, then snapshots, for signed-in operators. What they send is ignored.

A snapshot replaces the one before it. The handler of the group's messages only remembers the newest; a task
of its own sends it, and waits while the client is slow. So nothing queues up, and a slow client skips
snapshots. Points of the charts are no snapshots: each client gets every one, from this process's own fold.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from importlib import import_module
from typing import Any, Final

import msgspec
from channels.auth import get_user
from channels.consumer import AsyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings

from controlplane.common.permissions import is_operator
from controlplane.telemetry import folder
from controlplane.telemetry.buckets import POINT_S
from controlplane.telemetry.schema import Hello, History, LiveSnapshot, Point

logger = logging.getLogger(__name__)

NOT_SIGNED_IN: Final = 4401
MARK_EVERY_S: Final = 4.0
CHECK_SESSION_EVERY_S: Final = 30.0

_SNAPSHOTS: Final = msgspec.json.Decoder(LiveSnapshot)


class LiveConsumer(AsyncConsumer):
    """One browser."""

    def __init__(self) -> None:
        self._newest: bytes | None = None
        self._news = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._point_at = -math.inf

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._sender is not None:
                self._sender.cancel()

    async def websocket_connect(self, _: dict[str, Any]) -> None:
        # Accepted first: a browser can read a close code, but not the status of a refused handshake.
        await self.send({"type": "websocket.accept"})
        if not is_operator(self.scope.get("user")):
            await self.send({"type": "websocket.close", "code": NOT_SIGNED_IN, "reason": "Sign in first."})
            return
        await self.channel_layer.group_add(folder.group_of(_pool()), self.channel_name)
        self._sender = asyncio.create_task(self._send_all())

    async def websocket_receive(self, _: dict[str, Any]) -> None:
        """Clients have nothing to say here."""

    async def websocket_disconnect(self, _: dict[str, Any]) -> None:
        await self.channel_layer.group_discard(folder.group_of(_pool()), self.channel_name)
        raise StopConsumer

    async def live_snapshot(self, message: dict[str, Any]) -> None:
        """A snapshot from whichever process leads."""
        self._newest = message["body"]
        self._news.set()

    # Sending

    async def _send_all(self) -> None:
        try:
            await self._mark_watched()
            await self._greet()
            await self._send_snapshots()
        except OSError as error:
            # The client went away while we were sending; `websocket.disconnect` follows.
            logger.debug("a live client went away: %s", error)

    async def _greet(self) -> None:
        running = folder.current()
        hello = Hello(
            pool=_pool(),
            model=settings.TIDEGATE.model_name or (running.fold.fleet.model() if running else ""),
            server_time=running.now() if running else time.time(),
            interval_s=folder.WATCHED_INTERVAL_S,
            point_s=POINT_S,
            operator=self.scope["user"].get_full_name() or self.scope["user"].get_username(),
        )
        await self._send_json(hello)
        await self._send_json(History(points=self._new_points()))

    async def _send_snapshots(self) -> None:
        marked_at = checked_at = time.monotonic()
        while True:
            await self._wait_for_news()
            if time.monotonic() - marked_at > MARK_EVERY_S:
                marked_at = time.monotonic()
                await self._mark_watched()
            if time.monotonic() - checked_at > CHECK_SESSION_EVERY_S:
                checked_at = time.monotonic()
                if not await self._still_signed_in():
                    return
            await self._send_newest()

    async def _wait_for_news(self) -> None:
        """Until there is a snapshot to send, or it is time to look after other things."""
        try:
            await asyncio.wait_for(self._news.wait(), MARK_EVERY_S)
        except TimeoutError:
            return
        self._news.clear()

    async def _still_signed_in(self) -> bool:
        if is_operator(await _user_now(self.scope)):
            return True
        await self.send({"type": "websocket.close", "code": NOT_SIGNED_IN, "reason": "Signed out."})
        return False

    async def _send_newest(self) -> None:
        body, self._newest = self._newest, None
        if body is None:
            return
        points = self._new_points()
        if points:
            snapshot = msgspec.structs.replace(_SNAPSHOTS.decode(body), new_points=points)
            body = msgspec.json.encode(snapshot)
        await self.send({"type": "websocket.send", "text": body.decode()})

    def _new_points(self) -> tuple[Point, ...]:
        """The points that this client has not got yet."""
        running = folder.current()
        points = running.points_after(self._point_at) if running else ()
        if points:
            self._point_at = points[-1].at
        return points

    async def _send_json(self, message: Hello | History) -> None:
        await self.send({"type": "websocket.send", "text": msgspec.json.encode(message).decode()})

    @staticmethod
    async def _mark_watched() -> None:
        if running := folder.current():
            await running.mark_watched()


async def _user_now(scope: dict[str, Any]) -> Any:
    """Who the session belongs to by now: the scope's own copy was read when the socket opened."""
    store = import_module(settings.SESSION_ENGINE).SessionStore(scope["session"].session_key)
    return await get_user({**scope, "session": store})


def _pool() -> str:
    return str(settings.TIDEGATE.pool)
