"""Bodies over the limit are refused before they are held: Django's own limit is for forms, not for streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from controlplane.common.errors import TooLarge, error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_DRAIN_S: Final = 1.0


async def drain(receive: Receive) -> None:
    """Read on for a while and keep nothing: a client that is cut off while it sends loses the answer too."""
    with suppress(TimeoutError):
        async with asyncio.timeout(MAX_DRAIN_S):
            while (await receive()).get("more_body"):
                pass


class BodyLimit:
    """An ASGI application whose request bodies have at most `max_bytes`; more is answered with 413."""

    def __init__(self, application: Application, max_bytes: int) -> None:
        self._application = application
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = dict(scope["headers"]).get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await drain(receive)
            await self._refuse(send)
        else:
            await self._application(scope, self._counted(receive, send), send)

    def _counted(self, receive: Receive, send: Send) -> Receive:
        """To the application a client that was refused is one that left."""
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            before, num_bytes = num_bytes, num_bytes + len(message.get("body", b""))
            if num_bytes <= self._max_bytes:
                return message
            if before <= self._max_bytes:
                if message.get("more_body"):
                    await drain(receive)
                await self._refuse(send)
            return {"type": "http.disconnect"}

        return counted

    async def _refuse(self, send: Send) -> None:
        error = TooLarge(f"The body is larger than {self._max_bytes} bytes.")
        body = json.dumps(error_body(error)).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
