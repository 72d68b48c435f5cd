"""The client's end of a websocket of the real ASGI application, without a server between."""

from __future__ import annotations

from typing import Any

from asgiref.testing import ApplicationCommunicator

TIMEOUT_S = 10


class WebSocket(ApplicationCommunicator):
    """Connects, receives text, disconnects. (Channels' own communicator cannot be imported without
    daphne.)"""

    def __init__(self, application: Any, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        scope = {
            "type": "websocket",
            "path": path,
            "query_string": b"",
            "headers": headers,
            "subprotocols": [],
        }
        super().__init__(application, scope)

    async def connect(self) -> bool:
        """Open the socket; whether the server accepted it."""
        await self.send_input({"type": "websocket.connect"})
        answer = await self.receive_output(TIMEOUT_S)
        return bool(answer["type"] == "websocket.accept")

    async def text(self) -> str:
        """The next message."""
        output = await self.receive_output(TIMEOUT_S)
        assert output["type"] == "websocket.send", output
        return str(output["text"])

    async def close_code(self) -> int:
        """The code with which the server closes the socket; what it sends before is passed over."""
        while True:
            output = await self.receive_output(TIMEOUT_S)
            if output["type"] == "websocket.close":
                return int(output.get("code", 1000))

    async def disconnect(self) -> None:
        await self.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.wait(TIMEOUT_S)
