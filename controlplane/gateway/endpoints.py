"""The two endpoints as plain ASGI applications: no framework between a token and the socket."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import msgspec

from controlplane.common.body_limit import drain

from .answer import FAILED, LogprobEntry
from .errors import ApiError, BadRequest, BodyTooLarge, GenerationFailed, InternalError
from .live import LiveRequest
from .responses import WAITING, ChatFormat, Format, TextFormat
from .runtime import GatewayRuntime, current
from .schema import Asked, read_chat, read_completion

logger = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
FIRST_WORD_S: Final = 5.0  # a stream says that it waits after this time, then now and then
KEEP_ALIVE_S: Final = 15.0
MAX_STALL_S: Final = 60.0  # a client that takes nothing for so long is gone


class ClientGone(Exception):
    """The client closed its connection, or takes nothing any more."""


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
            answer = Writer(runtime, live, self.format(runtime, live, asked), asked, send)
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


class Writer:
    """Writes one answer to one client."""

    def __init__(
        self, runtime: GatewayRuntime, live: LiveRequest, form: Format, asked: Asked, send: Send
    ) -> None:
        self._runtime = runtime
        self._live = live
        self._form = form
        self._wants_logprobs = asked.sampling.logprobs is not None
        self._send = send
        self._is_started = False
        self._spoke_reading = time.perf_counter()

    async def whole(self) -> None:
        """Wait for the end, then answer."""
        live = self._live
        while not live.answer.ended:
            self._check_client()
            await live.changed(KEEP_ALIVE_S)
        self._raise_failure()
        _, entries = live.answer.read()
        body = self._form.body(live.answer.text, entries if self._wants_logprobs else None)
        await send_json(self._send, 200, body, self._headers())
        self._runtime.requests.finish(live)

    async def stream(self) -> None:
        """Server-sent events as tokens come; several at once where the client is slower than the model."""
        live = self._live
        while True:
            self._check_client()
            ended = live.answer.ended
            text, entries = live.answer.read()
            if ended:
                self._raise_failure_before_start()
                await self._end(text, entries)
                return
            if text or entries:
                await self._write(self._deltas(text, entries))
                self._note_first_token()
                continue
            await live.changed(self._time_to_speak())
            await self._say_waiting()

    async def _end(self, text: str, entries: list[LogprobEntry]) -> None:
        live = self._live
        if live.answer.finish_reason == FAILED:
            await self._write(
                _error_event(GenerationFailed(live.answer.error, code="generation_failed")), more=False
            )
            self._runtime.requests.finish(live)
            return
        deltas = self._deltas(text, entries) if text or entries else self._opening()
        await self._write(deltas + self._form.last(), more=False)
        self._note_first_token()
        self._runtime.requests.finish(live)

    def _deltas(self, text: str, entries: list[LogprobEntry]) -> bytes:
        return self._opening() + self._form.delta(text, entries if self._wants_logprobs else None)

    def _opening(self) -> bytes:
        return b"" if self._live.first_reading is not None else self._form.first()

    def _note_first_token(self) -> None:
        if self._live.first_reading is None and self._live.answer.num_received:
            self._runtime.requests.first_token(self._live)

    async def _write(self, data: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(MAX_STALL_S):
                if not self._is_started:
                    self._is_started = True
                    await self._send(
                        {"type": "http.response.start", "status": 200, "headers": self._sse_headers()}
                    )
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientGone from None
        self._spoke_reading = time.perf_counter()

    def _time_to_speak(self) -> float:
        pause_s = KEEP_ALIVE_S if self._is_started else FIRST_WORD_S
        return max(self._spoke_reading + pause_s - time.perf_counter(), 0.01)

    async def _say_waiting(self) -> None:
        """A comment that clients ignore and proxies see."""
        if not self._live.is_gone and self._time_to_speak() <= 0.01 and not self._live.answer.ended:
            await self._write(WAITING)

    def _check_client(self) -> None:
        if self._live.is_gone:
            raise ClientGone

    def _raise_failure_before_start(self) -> None:
        if not self._is_started:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._live.answer.finish_reason == FAILED:
            self._runtime.requests.finish(self._live)
            raise GenerationFailed(self._live.answer.error, code="generation_failed")

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-request-id", self._live.request_id.encode())]

    def _sse_headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
            *self._headers(),
        ]


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


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """One JSON response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


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


def _error_event(error: ApiError) -> bytes:
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n"
