"""The whole data plane: gateway, real worker, the demo's model on the CPU."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from django.conf import settings
from redis.asyncio import Redis

from controlplane.gateway.tokenizer import load_text_model
from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.schema import ClassLive
from controlplane.telemetry.source import TelemetrySource
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.reasons import render
from tests.gateway.conftest import (
    MODEL_NAME,
    POOL,
    ROOT,
    Gateway,
    Tenant,
    announce,
    start_gateway,
    wait_until,
)

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Whole:
    """Gateway, worker, and a client of theirs."""

    client: openai.OpenAI
    worker: subprocess.Popen[bytes]


@pytest.fixture
def whole(demo_model_dir: Path, policy: Policy, tenant: Tenant) -> Iterator[Whole]:
    before = settings.TIDEGATE
    environment = os.environ | {
        "TIDEGATE_MODEL": str(demo_model_dir),
        "TIDEGATE_DEVICE": "cpu",
        "TIDEGATE_THREADS": "1",
        "TIDEGATE_NUM_SLOTS": "8",
        "TIDEGATE_WORKER_ID": "real-worker",
    }
    worker = subprocess.Popen([sys.executable, "-m", "scheduler_worker.worker"], cwd=ROOT, env=environment)
    gateway = start_gateway(demo_model_dir)
    try:
        wait_until(lambda: gateway.runtime.view.has_worker, timeout_s=120, what="the worker's start")
        yield Whole(client_of(gateway, tenant), worker)
    finally:
        gateway.stop()
        worker.terminate()
        worker.wait(timeout=30)
        settings.TIDEGATE = before


@pytest.fixture
def real_client(whole: Whole) -> openai.OpenAI:
    return whole.client


def client_of(gateway: Gateway, tenant: Tenant) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.token, max_retries=0, timeout=100)


def test_a_real_model_answers_streams_stops_and_repeats_itself(
    real_client: openai.OpenAI, demo_model_dir: Path
) -> None:
    """One worker start for the whole story: it takes a while."""
    ask = real_client.chat.completions.create
    whole = ask(model=MODEL_NAME, messages=CAPITAL, temperature=0, max_tokens=24)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    assert whole.choices[0].finish_reason == "stop"

    stream = ask(model=MODEL_NAME, messages=CAPITAL, temperature=0, max_tokens=24, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content

    stopped = ask(model=MODEL_NAME, messages=CAPITAL, temperature=0, max_tokens=24, stop=[" France"])
    assert stopped.choices[0].message.content == "The capital of"

    logprobs = ask(
        model=MODEL_NAME, messages=CAPITAL, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    first = logprobs.choices[0].logprobs.content[0]
    assert (first.token, first.top_logprobs[0].token) == ("The", "The")
    assert first.logprob == pytest.approx(first.top_logprobs[0].logprob)

    seeded = [ask(model=MODEL_NAME, messages=CAPITAL, temperature=1, max_tokens=12, seed=7) for _ in range(2)]
    assert seeded[0].choices[0].message.content == seeded[1].choices[0].message.content

    model = load_text_model(str(demo_model_dir))
    token = model.tokenizer.encode("The").ids[0]
    banned = ask(
        model=MODEL_NAME, messages=CAPITAL, temperature=0, max_tokens=4, logit_bias={str(token): -100}
    )
    assert not banned.choices[0].message.content.startswith("The ")


def watch(redis_url: str, shows: Callable[[ClassLive], bool], timeout_s: float = 20.0) -> ClassLive:
    """Fold the real stream, as a web process does, until medium's card shows what is asked for."""

    async def fold() -> ClassLive:
        async with Redis.from_url(redis_url) as redis:
            source, one = TelemetrySource(redis, POOL), TelemetryFold(render)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                await source.set_clock()
                if found := await source.new_policy():
                    one.set_policy(*found)
                async for message in source.read_new():
                    one.take(message)
                classes = one.snapshot(source.clock.now(), 1).classes
                card = next(shown for shown in classes if shown.id == "medium")
                if shows(card):
                    return card
                await asyncio.sleep(0.05)
        raise AssertionError(f"the card was never so; at last {card}")

    return asyncio.run(fold())


def late(card: ClassLive) -> tuple[int, int, int]:
    return card.num_late, card.num_overdue, card.ttft_state.num_late


def test_a_request_that_waits_past_its_objective_is_late_from_then_on_and_once(
    whole: Whole, policy: Policy, redis_url: str
) -> None:
    """The worker is held for longer than medium's TTFT objective, while its lease still runs."""
    document = policy.model_dump(mode="json")
    next(one for one in document["classes"] if one["id"] == "medium")["slo"]["ttft_s"] = 0.5
    announce(Policy.model_validate(document))
    ask = whole.client.chat.completions.create
    ask(model=MODEL_NAME, messages=CAPITAL, max_tokens=4)  # the worker is warm
    before = watch(redis_url, lambda card: card.num_judged > 0)
    with ThreadPoolExecutor(1) as pool:
        whole.worker.send_signal(signal.SIGSTOP)
        try:
            answer = pool.submit(ask, model=MODEL_NAME, messages=CAPITAL, max_tokens=64)
            waits = watch(redis_url, lambda card: card.num_overdue > 0)
        finally:
            whole.worker.send_signal(signal.SIGCONT)
        answer.result(timeout=60)
    ends = watch(redis_url, lambda card: card.num_overdue == 0 and card.num_judged == waits.num_judged)
    num = before.num_late
    assert late(waits) == (num + 1, 1, before.ttft_state.num_late + 1)
    assert late(ends) == (num + 1, 0, before.ttft_state.num_late + 1)
