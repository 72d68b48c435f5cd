"""Writes one answer to one client.

Tokens of a stream go out where they come in, within the call that reads the gateway's output stream: waking a task
for each of them costs more than all else that is done with a token. The request's own task begins and ends its
answer, and takes over while the client is slower than the model.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any, Final

import msgspec

from .answer import FAILED, LogprobEntry
from .errors import ApiError, GenerationFailed
from .live import LiveRequest
from .requests import Requests
from .responses import WAITING, Format

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = (b"content-type", b"application/json")
FIRST_WORD_S: Final = 5.0  # a stream says that it waits after this time, then now and then
KEEP_ALIVE_S: Final = 15.0
MAX_STALL_S: Final = 60.0  # a client that takes nothing for so long is gone


class ClientGone(Exception):
    """The client closed its connection, or takes nothing any more."""


class Writer:
    """`whole` or `stream`, once."""

    def __init__(
        self, requests: Requests, live: LiveRequest, form: Format, wants_logprobs: bool, send: Send
    ) -> None:
        self._requests = requests
        self._live = live
        self._form = form
        self._wants_logprobs = wants_logprobs
        self._send = send
        self._is_started = False
        self._behind: Awaitable[None] | None = None
        self._spoke_reading = time.perf_counter()

    async def whole(self) -> None:
        """Wait for the end, then answer."""
        live = self._live
        while not live.answer.ended:
            self._check_client()
            await live.changed(KEEP_ALIVE_S, self._is_under_way)
        self._raise_failure()
        _, entries = live.answer.read()
        body = self._form.body(live.answer.text, entries if self._wants_logprobs else None)
        await send_json(self._send, 200, body, self._headers())
        self._requests.finish(live)

    def _is_under_way(self) -> bool:
        return not self._live.answer.ended and not self._live.is_gone

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
                await self._in_time(self._emit(text, entries))
                continue
            await live.changed(self._time_to_speak(), self._pass_on)
            await self._catch_up()
            await self._say_waiting()

    def _pass_on(self) -> bool:
        """Write what has come, while the task waits. False leaves the rest to it: the end, a client that is gone, or
        one that takes no more just now."""
        if not self._is_under_way():
            return False
        text, entries = self._live.answer.read()
        if not text and not entries:
            return True
        writing = self._emit(text, entries)
        try:
            waits_for = writing.send(None)
        except StopIteration:
            return True
        except Exception as error:
            self._behind = _failing(error)
        else:
            self._behind = _rest_of(writing, waits_for)
        return False

    async def _catch_up(self) -> None:
        if self._behind is not None:
            behind, self._behind = self._behind, None
            await self._in_time(behind)

    async def _emit(self, text: str, entries: list[LogprobEntry]) -> None:
        await self._write(self._deltas(text, entries))
        self._note_first_token()

    async def _end(self, text: str, entries: list[LogprobEntry]) -> None:
        live = self._live
        if live.answer.finish_reason == FAILED:
            error = GenerationFailed(live.answer.error, code="generation_failed")
            await self._in_time(self._write(_error_event(error), more=False))
            self._requests.finish(live)
            return
        deltas = self._deltas(text, entries) if text or entries else self._opening()
        await self._in_time(self._write(deltas + self._form.last(), more=False))
        self._note_first_token()
        self._requests.finish(live)

    def _deltas(self, text: str, entries: list[LogprobEntry]) -> bytes:
        return self._opening() + self._form.delta(text, entries if self._wants_logprobs else None)

    def _opening(self) -> bytes:
        return b"" if self._live.first_reading is not None else self._form.first()

    def _note_first_token(self) -> None:
        if self._live.first_reading is None and self._live.answer.num_received:
            self._requests.first_token(self._live)

    async def _write(self, data: bytes, more: bool = True) -> None:
        if not self._is_started:
            self._is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._sse_headers()})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._spoke_reading = time.perf_counter()

    async def _in_time(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(MAX_STALL_S):
                await writing
        except TimeoutError:
            raise ClientGone from None

    def _time_to_speak(self) -> float:
        pause_s = KEEP_ALIVE_S if self._is_started else FIRST_WORD_S
        return max(self._spoke_reading + pause_s - time.perf_counter(), 0.01)

    async def _say_waiting(self) -> None:
        """A comment that clients ignore and proxies see."""
        if not self._live.is_gone and self._time_to_speak() <= 0.01 and not self._live.answer.ended:
            await self._in_time(self._write(WAITING))

    def _check_client(self) -> None:
        if self._live.is_gone:
            raise ClientGone

    def _raise_failure_before_start(self) -> None:
        if not self._is_started:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._live.answer.finish_reason == FAILED:
            self._requests.finish(self._live)
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


@types.coroutine
def _rest_of(begun: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """Awaits a coroutine that was begun outside a task and now waits for something."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            going_on = begun.throw, error
        else:
            going_on = begun.send, value
        try:
            waits_for = going_on[0](going_on[1])
        except StopIteration:
            return


async def _failing(error: Exception) -> None:
    raise error


async def send_json(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """One JSON response."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})


def _error_event(error: ApiError) -> bytes:
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n"
