"""The two endpoints as plain ASGI applications: no framework between a token and the socket."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from controlplane.common.body_limit import drain

from .errors import ApiError, BadRequest, BodyTooLarge, InternalError
from .live import LiveRequest
from .responses import ChatFormat, Format, TextFormat
from .runtime import GatewayRuntime, current
from .schema import Asked, read_chat, read_completion
from .writer import ClientGone, Message, Send, Writer, send_json

logger = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Completion:
    """One endpoint. `read` makes an `Asked` of a body; `endpoint` is the name that the row gets."""

    endpoint = ""

    def read(self, data: bytes) -> Asked:
        raise NotImplementedError

    def format(self, runtime: GatewayRuntime, live: LiveRequest, asked: Asked) -> Format:
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure that happens before the first byte has OpenAI's shape."""
        headers_reading = time.perf_counter()
        try:
            await self._answer(scope, receive, send, headers_reading)
        except ClientGone:
            return
        except ApiError as error:
            await send_error(send, error)
        except Exception:
            logger.exception("%s failed", scope["path"])
            await send_error(send, InternalError())

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers_reading: float) -> None:
        runtime = current()
        headers = dict(scope["headers"])
        key = await runtime.keys.authenticate(headers.get(b"authorization"))
        data = await read_body(headers, receive, runtime.settings.max_body_bytes)
        asked = self.read(data)
        live = await runtime.accept(key, asked, self.endpoint, headers_reading)
        watch = asyncio.ensure_future(_watch(receive, live))
        try:
            wants_logprobs = asked.sampling.logprobs is not None
            answer = Writer(runtime.requests, live, self.format(runtime, live, asked), wants_logprobs, send)
            await (answer.stream() if asked.stream else answer.whole())
        except asyncio.CancelledError:
            runtime.requests.leave(live)  # the server stops: what was accepted is finished without its client
            raise
        finally:
            watch.cancel()
            if live.has_client:
                runtime.abandon(live)


class ChatCompletions(Completion):
    """`POST /v1/chat/completions`."""

    endpoint = "chat.completions"

    def read(self, data: bytes) -> Asked:
        return read_chat(data)

    def format(self, runtime: GatewayRuntime, live: LiveRequest, asked: Asked) -> Format:
        return ChatFormat(live, asked.model, runtime.model.vocabulary, asked.include_usage)


class Completions(Completion):
    """`POST /v1/completions`."""

    endpoint = "completions"

    def read(self, data: bytes) -> Asked:
        return read_completion(data)

    def format(self, runtime: GatewayRuntime, live: LiveRequest, asked: Asked) -> Format:
        echo = ""
        if asked.echo:
            echo = asked.text if asked.text is not None else runtime.model.decode(asked.token_ids or ())
        return TextFormat(live, asked.model, runtime.model.vocabulary, asked.include_usage, echo)


async def _watch(receive: Receive, live: LiveRequest) -> None:
    """Notice that the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    live.is_gone = True
    live.wake()


async def read_body(headers: dict[bytes, bytes], receive: Receive, max_bytes: int) -> bytes:
    """The whole body; counted while it is read, so that no more than the limit is ever held."""
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > max_bytes:
        await drain(receive)
        raise BodyTooLarge(max_bytes)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise BadRequest("Compressed bodies are not supported; send plain JSON.", code="unsupported_encoding")
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        num_bytes += len(chunks[-1])
        if num_bytes > max_bytes:
            chunks.clear()
            if message.get("more_body"):
                await drain(receive)
            raise BodyTooLarge(max_bytes)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def send_error(send: Send, error: ApiError) -> None:
    """An error in OpenAI's shape, with `Retry-After` where a retry helps."""
    headers: list[tuple[bytes, bytes]] = []
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(math.ceil(error.retry_after_s), 1)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 413:
        headers.append((b"connection", b"close"))
    await send_json(send, error.status, msgspec.json.encode(error.body()), headers)
