"""Postgres or Redis away, clients that take nothing: clear refusals, no lost requests, bounded buffers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest
import redis
from django.db import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from controlplane.gateway import acceptance, endpoints, writer
from controlplane.inference.models import InferenceRequest
from controlplane.inference.services import record_accepted
from scheduler_worker.protocol import keys
from tests.gateway.conftest import ANSWER, MODEL_NAME, POOL, Gateway, Tenant, wait_until
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": MODEL_NAME, "messages": HELLO}


def fails(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_without_the_database_a_request_is_503_and_not_queued(
    http: httpx.Client, gateway: Gateway, valkey: redis.Redis, worker: ScriptedWorker
) -> None:
    gateway.runtime._acceptance._record = fails(OperationalError("the database is away"))
    response = http.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable")
    assert worker.seen == []


def test_one_row_that_the_database_refuses_does_not_take_others_with_it(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    from django.db import DataError

    def record(rows: Any) -> None:
        if any(row.parameters.get("user") == "bad" for row in rows):
            raise DataError("cannot be stored")
        record_accepted(rows)

    gateway.runtime._acceptance._record = record
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL_NAME, messages=HELLO, user="bad")
    answer = client.chat.completions.create(model=MODEL_NAME, messages=HELLO, user="good")
    assert answer.choices[0].message.content == ANSWER


def test_a_queue_that_does_not_take_the_request_makes_it_503_and_its_row_failed(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "run_many", fails(RedisConnectionError("the queue is away")))
    monkeypatch.setattr(acceptance, "RETRY_S", 0.01)
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 503
    row = wait_until(lambda: InferenceRequest.objects.filter(state="failed").first(), what="the failed row")
    assert "queue" in row.error


def test_records_wait_for_the_broker(gateway: Gateway, client: openai.OpenAI, valkey: redis.Redis) -> None:
    completions = gateway.runtime.requests.completions
    send, completions._send = completions._send, fails(RedisConnectionError("the broker is away"))
    client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
    wait_until(lambda: completions.num_open == 1, what="the waiting record")
    assert valkey.hlen(keys.OWNED.of(POOL, gateway.runtime.gateway)) == 1
    completions._send = send
    wait_until(lambda: InferenceRequest.objects.filter(state="succeeded").exists(), what="the record")


def test_a_restarted_valkey_that_lost_its_scripts_gets_them_again(
    client: openai.OpenAI, valkey: redis.Redis
) -> None:
    client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
    valkey.script_flush()
    answer = client.chat.completions.create(model=MODEL_NAME, messages=HELLO)
    assert answer.choices[0].message.content == ANSWER


def test_a_client_that_takes_nothing_is_given_up_and_its_sequence_cancelled(
    gateway: Gateway, tenant: Tenant, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_STALL_S", 0.3)
    wait_until(lambda: gateway.runtime.view.has_worker)
    worker.answer = lambda _: [5] * 200
    worker.step_s = 0.02
    served = asyncio.run_coroutine_threadsafe(serve_to_nobody(tenant.token), gateway.runtime.loop)
    wait_until(lambda: worker.cancelled, what="the cancel")
    served.result(timeout=5)


async def serve_to_nobody(token: str) -> None:
    """The endpoint under a server whose buffers are full and stay so."""
    body = json.dumps(CHAT | {"stream": True}).encode()
    parts = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else await asyncio.Future()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Future()

    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "path": "/v1/chat/completions", "headers": headers}
    await endpoints.ChatCompletions()(scope, receive, send)


def test_a_stream_that_waits_says_so(
    http: httpx.Client, worker: ScriptedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_WORD_S", 0.1)
    worker.gate.clear()
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(":")
        worker.gate.set()
        assert list(lines)[-2] == "data: [DONE]"


def test_a_slow_reader_gets_everything(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    worker.step_s = 0.0005
    stream = client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True)
    text = ""
    for chunk in stream:
        time.sleep(0.01)
        text += chunk.choices[0].delta.content or ""
    assert text == ANSWER
