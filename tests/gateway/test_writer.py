"""A stream's tokens go out where they come in; a client that is slower than the model gets the same bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.gateway.answer import Answer, AnswerRules
from controlplane.gateway.clock import RedisClock
from controlplane.gateway.detokenizer import Vocabulary
from controlplane.gateway.live import LiveRequest
from controlplane.gateway.requests import Requests
from controlplane.gateway.responses import ChatFormat
from controlplane.gateway.tasks import Tasks
from controlplane.gateway.telemetry import Telemetry
from controlplane.gateway.writer import ClientGone, Writer
from scheduler_worker.protocol.messages import Frame, FrameRow, Header
from tests.gateway.tiny_model import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich 🙂."
TOKENS = TOKENIZER.encode(TEXT).ids
Message = dict[str, Any]


def requests() -> Requests:
    clock = RedisClock()
    telemetry = Telemetry("default", clock, lambda: 0)
    return Requests("default", None, clock, Tasks(), telemetry, lambda _: None, lambda *_: None)  # type: ignore[arg-type]


def followed(requests: Requests, request_id: str) -> LiveRequest:
    header = Header(
        request_id=request_id,
        class_id="high",
        tenant="t",
        gateway="g",
        arrived_at=0.0,
        num_prompt_tokens=1,
        max_tokens=99,
    )
    live = LiveRequest(
        header=header,
        answer=Answer(VOCABULARY, AnswerRules(), frozenset()),
        gateway="g",
        is_stream=True,
        has_client=True,
    )
    requests.add(live)
    return live


def writer(requests: Requests, live: LiveRequest, send: Callable[[Any], Awaitable[None]]) -> Writer:
    return Writer(requests, live, ChatFormat(live, "tiny", VOCABULARY, include_usage=False), False, send)


def row(request_id: str, offset: int, num: int) -> FrameRow:
    is_last = offset + num >= len(TOKENS)
    tokens = tuple(TOKENS[offset : offset + num])
    return FrameRow(
        request_id=request_id, attempt=0, offset=offset, token_ids=tokens, finish="length" if is_last else ""
    )


def say(requests: Requests, *rows: FrameRow) -> None:
    frame = Frame(worker="w", step=1, published_at=0.0, rows=rows)
    for one in rows:
        requests._on_row(frame, one)


def text_of(messages: list[Message]) -> str:
    body = b"".join(one.get("body", b"") for one in messages)
    events = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    assert events.pop() == b"[DONE]"
    return "".join(json.loads(one)["choices"][0]["delta"].get("content", "") for one in events)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1),
    waits=st.lists(st.integers(0, 3), min_size=1),
)
def test_every_character_is_written_once_and_in_order_however_slow_the_client_is(
    rows: list[tuple[int, int]], waits: list[int]
) -> None:
    async def run() -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            for _ in range(waits[len(sent) % len(waits)]):
                await asyncio.sleep(0)
            sent.append(message)

        table = requests()
        live = followed(table, "a")
        streaming = asyncio.ensure_future(writer(table, live, send).stream())
        offset, at = 0, 0
        while offset < len(TOKENS):
            num, turns = rows[at % len(rows)]
            for _ in range(turns):
                await asyncio.sleep(0)
            say(table, row("a", offset, num))
            offset, at = offset + num, at + 1
        await asyncio.wait_for(streaming, 5)
        return sent

    sent = asyncio.run(run())
    assert text_of(sent) == TEXT
    assert [one["type"] for one in sent[:2]] == ["http.response.start", "http.response.body"]


async def test_a_token_is_written_before_its_row_was_taken() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    table = requests()
    live = followed(table, "a")
    streaming = asyncio.ensure_future(writer(table, live, send).stream())
    await asyncio.sleep(0.01)
    say(table, row("a", 0, 1))
    assert len(sent) == 2
    live.is_gone = True
    live.wake()
    with pytest.raises(ClientGone):
        await streaming


async def test_a_connection_that_fails_ends_its_own_stream_and_no_other() -> None:
    sent: list[Message] = []

    async def fails(_: Message) -> None:
        raise RuntimeError("the transport is closed")

    async def send(message: Message) -> None:
        sent.append(message)

    table = requests()
    broken = asyncio.ensure_future(writer(table, followed(table, "a"), fails).stream())
    sound = asyncio.ensure_future(writer(table, followed(table, "b"), send).stream())
    await asyncio.sleep(0.01)
    say(table, row("a", 0, 1), row("b", 0, len(TOKENS)))
    await asyncio.wait_for(sound, 5)
    assert text_of(sent) == TEXT
    with pytest.raises(RuntimeError, match="transport"):
        await broken


async def test_a_task_that_is_cancelled_while_its_client_is_slow_cancels_the_write() -> None:
    cancelled = asyncio.Event()

    async def blocks(_: Message) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    table = requests()
    streaming = asyncio.ensure_future(writer(table, followed(table, "a"), blocks).stream())
    await asyncio.sleep(0.01)
    say(table, row("a", 0, 1))
    await asyncio.sleep(0.01)
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert cancelled.is_set()
