"""The whole data plane: gateway, real worker, the demo's model on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from django.conf import settings

from controlplane.gateway.tokenizer import load_text_model
from scheduler_worker.core.policy import Policy
from tests.gateway.conftest import MODEL_NAME, ROOT, Gateway, Tenant, start_gateway, wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def real_client(demo_model_dir: Path, policy: Policy, tenant: Tenant) -> Iterator[openai.OpenAI]:
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
        yield client_of(gateway, tenant)
    finally:
        gateway.stop()
        worker.terminate()
        worker.wait(timeout=30)
        settings.TIDEGATE = before


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
