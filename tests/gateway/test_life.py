"""What was accepted ends, once, whoever dies; what was written is right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import redis

from controlplane.common.redis import run_sync
from controlplane.gateway.requests import LOST
from controlplane.inference.models import InferenceRequest
from controlplane.tenants.selectors import find_key
from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import FrameRow, GatewayTelemetry
from scheduler_worker.protocol.telemetry import read_fields
from tests.gateway.conftest import (
    ANSWER,
    MODEL_NAME,
    POOL,
    Gateway,
    Tenant,
    make_tenant,
    wait_until,
)
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": MODEL_NAME, "messages": HELLO}


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL_NAME, messages=HELLO, **fields)


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def row_of(answer_id: str) -> InferenceRequest:
    """The request's row once it has ended."""
    request_id = answer_id.split("-", 1)[1]

    def ended() -> InferenceRequest | None:
        return InferenceRequest.objects.filter(pk=request_id).exclude(state="accepted").first()

    return wait_until(ended, what="the completion record")


class InBackground:
    """A call in a thread; `result` waits for it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._value


# --- the row ---------------------------------------------------------------------------------------


def test_a_request_is_committed_before_a_worker_sees_it(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    seen: list[bool] = []
    answer = worker.answer

    def look(payload: Any) -> Any:
        seen.append(InferenceRequest.objects.filter(pk=payload.request_id).exists())
        return answer(payload)

    worker.answer = look
    ask(client)
    assert seen == [True]


def test_the_row_says_how_the_request_ended(client: openai.OpenAI) -> None:
    answer = ask(client)
    row = row_of(answer.id)
    assert (row.state, row.finish_reason, row.output) == ("succeeded", "stop", ANSWER)
    assert (row.num_prompt_tokens, row.num_output_tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def test_the_row_has_the_gateways_times_and_the_workers_breakdown(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    row = row_of(chunks[0].id)
    assert 0 < row.ttft_s < row.e2e_s < 5
    assert row.tpot_s * (row.num_output_tokens - 1) == pytest.approx(row.e2e_s - row.ttft_s, rel=0.01)
    assert (row.queue_s, row.prefill_s, row.num_cached_tokens) == (0.001, 0.002, 4)


def test_a_prompt_that_came_before_is_reckoned_as_cached(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    """What a request is expected to cost: its full blocks are not computed twice, another prompt's are."""
    for text in ("tides " * 60, "tides " * 60, "gates " * 60):
        client.completions.create(model=MODEL_NAME, prompt=text, max_tokens=5)
    first, again, other = worker.headers
    assert first.block_hashes == again.block_hashes != other.block_hashes
    prices = default_policy().fairness
    saved = 16 * ((first.num_prompt_tokens - 1) // 16) * (prices.prompt_token_cost - prices.cached_token_cost)
    assert saved > 0
    assert first.cost - again.cost == pytest.approx(saved)
    answers = [one.cost - one.num_prompt_tokens * prices.prompt_token_cost for one in (first, other)]
    assert answers[0] == pytest.approx(answers[1])


def test_parameters_are_recorded_without_the_prompt(client: openai.OpenAI) -> None:
    row = row_of(ask(client, user="ann", temperature=0.5).id)
    assert row.parameters == {"model": MODEL_NAME, "user": "ann", "temperature": 0.5}


def test_text_that_postgres_cannot_hold_does_not_lose_the_record(
    client: openai.OpenAI, worker: ScriptedWorker, gateway: Gateway
) -> None:
    nul = gateway.runtime.model.tokenizer.encode("\0").ids
    worker.answer = lambda _: nul
    assert row_of(ask(client).id).output == "\ufffd"


def test_what_redis_kept_of_a_request_is_gone_after_its_end(
    client: openai.OpenAI, valkey: redis.Redis
) -> None:
    request_id = ask(client).id.split("-", 1)[1]
    kept = [keys.PAYLOAD.of(POOL, request_id), keys.TOKENS.of(POOL, request_id)]
    wait_until(lambda: not valkey.exists(*kept), what="the clearing")


def test_many_requests_share_a_commit(gateway: Gateway, http: httpx.Client, tenant: Tenant) -> None:
    before = gateway.runtime.num_commits
    calls = [InBackground(lambda: http.post("/v1/chat/completions", json=CHAT)) for _ in range(40)]
    assert [call.result().status_code for call in calls] == [200] * 40
    assert gateway.runtime.num_commits - before < 40


# --- leaving early ---------------------------------------------------------------------------------


def test_closing_a_stream_cancels_the_sequence_within_a_step(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    worker.step_s = 0.02
    worker.answer = lambda _: [5] * 200
    stream = ask(client, stream=True)
    answer_id = next(iter(stream)).id
    stream.close()
    closed = time.perf_counter()
    wait_until(lambda: worker.cancelled, what="the cancel")
    assert worker.cancelled[0][0] == answer_id.split("-", 1)[1]
    assert worker.cancelled[0][1] - closed < 1.0
    assert row_of(answer_id).state == "cancelled"


def test_leaving_a_request_that_does_not_stream_cancels_it(
    http: httpx.Client, worker: ScriptedWorker
) -> None:
    worker.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=CHAT, timeout=0.5)
    wait_until(lambda: worker.cancelled, what="the cancel")


def test_leaving_while_the_request_waits_takes_it_out_of_the_queue(
    http: httpx.Client, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.claims = False
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=CHAT, timeout=0.5)
    wait_until(lambda: not valkey.hlen(keys.HEADERS.of(POOL)), what="the withdrawal")
    wait_until(lambda: not valkey.hlen(keys.CLASS_LOAD.of(POOL)), what="the class's load to fall")


def test_within_the_grace_a_request_outlives_its_client(
    gateway: Gateway, client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    object.__setattr__(gateway.runtime.settings, "disconnect_grace_s", 30.0)
    worker.step_s = 0.02
    stream = ask(client, stream=True)
    answer_id = next(iter(stream)).id
    stream.close()
    row = row_of(answer_id)
    assert (row.state, row.output, worker.cancelled) == ("succeeded", ANSWER, [])


# --- the worker's troubles -------------------------------------------------------------------------


def test_a_worker_that_dies_in_mid_stream_is_not_noticed_by_the_client(
    client: openai.OpenAI, worker: ScriptedWorker, redis_url: str
) -> None:
    worker.step_s = 0.02
    stream = iter(ask(client, stream=True))
    parts = [next(stream).choices[0].delta.content or "" for _ in range(4)]
    worker.stop(leave=False)
    second = ScriptedWorker(redis_url, POOL, worker.answer, worker.eos_id, name="worker-2").start()
    try:
        parts += [chunk.choices[0].delta.content or "" for chunk in stream]
    finally:
        second.stop()
    assert "".join(parts) == ANSWER
    assert second.headers[0].attempt == 1


def test_rows_of_an_older_attempt_are_not_shown(
    client: openai.OpenAI, worker: ScriptedWorker, gateway: Gateway, valkey: redis.Redis
) -> None:
    worker.gate.clear()
    call = InBackground(lambda: ask(client))
    running = wait_until(lambda: list(worker.running.values()), what="the claim")[0]
    request_id = running.header.request_id
    run_sync(valkey, scripts.release(POOL, worker.name))
    wait_until(lambda: len(worker.headers) == 2, what="the second claim")
    late = FrameRow(request_id=request_id, attempt=0, offset=0, token_ids=(7, 7, 7))
    put_on_stream(valkey, gateway, late)
    worker.gate.set()
    assert call.result().choices[0].message.content == ANSWER


def test_a_frame_that_comes_twice_is_shown_once(
    client: openai.OpenAI, worker: ScriptedWorker, gateway: Gateway, valkey: redis.Redis
) -> None:
    worker.gate.clear()
    call = InBackground(lambda: ask(client))
    running = wait_until(lambda: list(worker.running.values()), what="the claim")[0]
    first = FrameRow(
        request_id=running.header.request_id, attempt=0, offset=0, token_ids=tuple(running.tokens[:3])
    )
    put_on_stream(valkey, gateway, first)
    worker.gate.set()
    assert call.result().choices[0].message.content == ANSWER


def test_rows_that_went_missing_are_filled_from_the_published_tokens(
    client: openai.OpenAI, worker: ScriptedWorker, gateway: Gateway, valkey: redis.Redis
) -> None:
    worker.gate.clear()
    call = InBackground(lambda: ask(client))
    running = wait_until(lambda: list(worker.running.values()), what="the claim")[0]
    tokens = b"".join(token.to_bytes(4, "little") for token in running.tokens[:3])
    valkey.append(keys.TOKENS.of(POOL, running.header.request_id), tokens)
    running.position = 3
    worker.gate.set()
    assert call.result().choices[0].message.content == ANSWER


def test_a_stream_goes_on_after_redis_lost_its_memory(
    client: openai.OpenAI, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.step_s = 0.02
    stream = iter(ask(client, stream=True))
    parts = [next(stream).choices[0].delta.content or "" for _ in range(5)]
    worker.gate.clear()
    valkey.flushall()
    worker.gate.set()
    parts += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == ANSWER


def test_a_request_whose_end_went_missing_is_ended_with_an_error(
    client: openai.OpenAI, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.claims = False
    call = InBackground(lambda: ask(client))
    wait_until(lambda: valkey.hlen(keys.HEADERS.of(POOL)), what="the queueing")
    valkey.delete(keys.HEADERS.of(POOL))
    with pytest.raises(openai.InternalServerError, match=LOST[:20]):
        call.result()


def put_on_stream(valkey: redis.Redis, gateway: Gateway, row: FrameRow) -> None:
    """As a worker that does not know that it lost the claim might."""
    from scheduler_worker.protocol.messages import Frame, encode

    frame = Frame(worker="ghost", step=1, published_at=time.time(), rows=(row,))
    valkey.xadd(keys.OUTPUT.of(POOL, gateway.runtime.gateway), {"frame": encode(frame)})


# --- telemetry -------------------------------------------------------------------------------------


def telemetry(valkey: redis.Redis) -> Iterator[GatewayTelemetry]:
    for _, fields in valkey.xrange(keys.TELEMETRY.of(POOL)):
        message = read_fields(fields)
        if isinstance(message, GatewayTelemetry):
            yield message


def test_telemetry_has_one_first_and_one_last_sample_of_a_request(
    client: openai.OpenAI, valkey: redis.Redis
) -> None:
    request_id = ask(client, stream=False).id.split("-", 1)[1]

    def samples(kind: str) -> list[Any]:
        return [one for message in telemetry(valkey) for one in getattr(message, kind)]

    wait_until(lambda: samples("finished"), what="the sample")
    first, last = samples("first_tokens"), samples("finished")
    assert [one.request_id for one in first] == [one.request_id for one in last] == [request_id]
    assert (last[0].class_id, last[0].outcome) == ("medium", "succeeded")


def test_telemetry_comes_also_when_nothing_happens(gateway: Gateway, valkey: redis.Redis) -> None:
    wait_until(lambda: len(list(telemetry(valkey))) >= 3, what="three messages")


def test_ttft_is_measured_from_headers_in_to_bytes_written(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    worker.gate.clear()
    started = time.perf_counter()
    call = InBackground(lambda: (time.perf_counter(), text_of(ask(client, stream=True))))
    time.sleep(0.3)
    worker.gate.set()
    call.result()
    row = wait_until(lambda: InferenceRequest.objects.exclude(state="accepted").first())
    assert 0.2 < row.ttft_s < time.perf_counter() - started


def test_output_tokens_are_counted_by_class(client: openai.OpenAI, valkey: redis.Redis) -> None:
    num = ask(client).usage.completion_tokens
    wait_until(
        lambda: sum(message.output_tokens.get("medium", 0) for message in telemetry(valkey)) == num,
        what="the count",
    )


def test_every_arrival_is_kept_for_what_if_refused_ones_too(http: httpx.Client, valkey: redis.Redis) -> None:
    few = make_tenant(default_class="low", requests_per_minute=1)
    for _ in range(2):
        http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {few.token}"})
    import msgspec

    def outcomes() -> list[Any]:
        return [
            msgspec.msgpack.decode(fields[b"a"])[1:6:4] for _, fields in valkey.xrange(keys.ARRIVALS.of(POOL))
        ]

    wait_until(lambda: outcomes() == [["low", "accepted"], ["low", "tenant_quota"]], what="both arrivals")


# --- fire and fetch later --------------------------------------------------------------------------


def test_a_submitted_request_ends_without_anybody_waiting(
    gateway: Gateway, client: openai.OpenAI, tenant: Tenant
) -> None:
    request_id = submit(gateway, tenant)
    row = row_of(f"x-{request_id}")
    assert (row.state, row.endpoint, row.output) == ("succeeded", "requests.chat", ANSWER)


def test_a_submitted_request_can_be_cancelled(
    gateway: Gateway, client: openai.OpenAI, worker: ScriptedWorker, tenant: Tenant
) -> None:
    worker.gate.clear()
    request_id = submit(gateway, tenant)
    wait_until(lambda: worker.running, what="the claim")
    on_loop(gateway, gateway.runtime.cancel(request_id))
    assert row_of(f"x-{request_id}").state == "cancelled"


def test_progress_shows_how_far_a_request_is(
    gateway: Gateway, client: openai.OpenAI, worker: ScriptedWorker, tenant: Tenant
) -> None:
    worker.gate.clear()
    request_id = submit(gateway, tenant)
    assert gateway.runtime.progress(request_id).state == "queued"
    worker.gate.set()
    row_of(f"x-{request_id}")
    wait_until(lambda: gateway.runtime.progress(request_id) is None, what="the end")


def submit(gateway: Gateway, tenant: Tenant) -> str:
    import msgspec

    key = find_key(tenant.token)
    return on_loop(gateway, gateway.runtime.submit(key, msgspec.json.encode(CHAT), chat=True))


def on_loop(gateway: Gateway, coroutine: Any) -> Any:
    import asyncio

    return asyncio.run_coroutine_threadsafe(coroutine, gateway.runtime.loop).result(timeout=10)


# --- stopping --------------------------------------------------------------------------------------


def test_stopping_lets_an_open_stream_finish(
    client: openai.OpenAI, worker: ScriptedWorker, gateway: Gateway
) -> None:
    worker.step_s = 0.05
    stream = iter(ask(client, stream=True))
    first = next(stream).choices[0].delta.content or ""
    gateway.server.should_exit = True
    assert first + "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_a_stopped_gateway_leaves_nothing_behind(
    client: openai.OpenAI, gateway: Gateway, valkey: redis.Redis
) -> None:
    ask(client)
    gateway.stop()
    assert valkey.zcard(keys.GATEWAY_LEASES.of(POOL)) == 0
    assert not valkey.exists(keys.OUTPUT.of(POOL, gateway.runtime.gateway))


# --- several gateways ------------------------------------------------------------------------------


def test_a_gateway_whose_lease_was_taken_still_answers_its_clients(
    client: openai.OpenAI, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.gate.clear()
    old_name = gateway.runtime.gateway
    stream = InBackground(lambda: text_of(ask(client, stream=True)))
    wait_until(lambda: worker.running, what="the claim")
    gateway.runtime.upkeep.renewed_reading -= 2 * keys.GATEWAY_LEASE_S
    wait_until(lambda: gateway.runtime.gateway != old_name, what="the new name")
    worker.gate.set()
    assert stream.result() == ANSWER
    assert ask(client).choices[0].message.content == ANSWER


def test_the_output_stream_does_not_grow_with_finished_requests(
    client: openai.OpenAI, gateway: Gateway, valkey: redis.Redis
) -> None:
    for _ in range(30):
        ask(client)
    key = keys.OUTPUT.of(POOL, gateway.runtime.gateway)
    wait_until(lambda: valkey.xlen(key) < 150, what="the trimming")
