"""A worker with the real engine and a small Llama of random weights, against the model's own `generate()`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import transformers

from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_model, make_prompt, reference
from tests.worker.fleet import Fleet

NUM_TOKENS = 60
PROMPTS = {f"r{number}": make_prompt(20 + 7 * number, number) for number in range(4)}


@pytest.fixture(scope="module")
def model() -> transformers.PreTrainedModel:
    return make_model("llama")


@pytest.fixture(scope="module")
def model_dir(model: transformers.PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wanted(model: transformers.PreTrainedModel) -> dict[str, list[int]]:
    return {name: reference(model, prompt, NUM_TOKENS) for name, prompt in PROMPTS.items()}


def start(fleet: Fleet, worker: str, model_dir: Path) -> None:
    environ = {
        "TIDEGATE_MODEL": str(model_dir),
        "TIDEGATE_DEVICE": "cpu",
        "TIDEGATE_DTYPE": "float32",
        "TIDEGATE_KV_BYTES": str(64 << 20),
        "TIDEGATE_NUM_SLOTS": "8",
        "TIDEGATE_THREADS": "1",
    }
    fleet.start_module(worker, "scheduler_worker.worker", environ)


def send_all(fleet: Fleet) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    for name, prompt in PROMPTS.items():
        fleet.client.send(name, prompt, NUM_TOKENS, sampling=sampling)


def test_requests_batched_together_get_the_tokens_of_the_model_alone(
    fleet: Fleet, model_dir: Path, wanted: dict[str, list[int]]
) -> None:
    start(fleet, "w1", model_dir)
    send_all(fleet)
    fleet.client.wait_for_end()
    assert {name: one.tokens for name, one in fleet.client.outputs.items()} == wanted
    assert fleet.client.faults() == {}


def test_a_killed_engine_is_continued_by_another_after_its_last_token(
    fleet: Fleet, model_dir: Path, wanted: dict[str, list[int]]
) -> None:
    start(fleet, "w1", model_dir)
    start(fleet, "w2", model_dir)
    fleet.workers[1].signal(signal.SIGSTOP)
    send_all(fleet)
    fleet.client.wait_for_tokens("r3", 5)
    fleet.workers[0].signal(signal.SIGKILL)
    fleet.workers[1].signal(signal.SIGCONT)
    fleet.client.wait_for_end()
    assert {name: one.tokens for name, one in fleet.client.outputs.items()} == wanted
    assert fleet.client.faults() == {}


def test_a_model_that_is_not_there_stops_the_start_and_says_so(fleet: Fleet, tmp_path: Path) -> None:
    environ = {"TIDEGATE_MODEL": str(tmp_path / "nothing")}
    worker = fleet.start_module("w1", "scheduler_worker.worker", environ, wait=False)
    assert worker.wait() == 1
    assert "cannot be served" in worker.log.read_text()
