"""Steps as CUDA graphs against the eager model and against `generate()` on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import AttentionBatch, LayerSpec
from scheduler_worker.engine.attention.capturable import GraphShape, MakeCapturable
from scheduler_worker.engine.attention.sdpa import SdpaBackend
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.kv_cache import KVCache
from scheduler_worker.executor import SequenceInput
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import FAMILIES, make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner
from tests.engine.test_in_flight import NUM_TOKENS, run_two_deep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PROMPTS = [make_prompt(length) for length in (5, 16, 31)]
FLASHINFER_SIZES = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True, logprobs=1)
WIDER = {"hidden_size": 1024, "intermediate_size": 2048}
"""Layers that our own kernel multiplies."""


class PlainAttention:
    """Every token against the whole block table of its row, in the model's own precision."""

    def __init__(
        self,
        cache: KVCache,
        layers: tuple[LayerSpec, ...],
        shape: GraphShape,
        num_columns: int,
        write_index: torch.Tensor,
    ) -> None:
        self._cache, self._layers, self._shape, self._write_index = cache, layers, shape, write_index
        device = cache.keys.device
        self._tables = torch.zeros(shape.num_tokens, num_columns, dtype=torch.int64, device=device)
        self._positions = torch.zeros(shape.num_tokens, dtype=torch.int64, device=device)

    def stage(self, batch: AttentionBatch) -> None:
        rows = np.repeat(np.arange(batch.num_rows), np.diff(batch.offsets))
        places = np.arange(len(rows))
        places[rows >= batch.num_decode_rows] += self._shape.num_decode_rows - batch.num_decode_rows
        positions = batch.starts[rows] + np.arange(len(rows)) - batch.offsets[rows]
        index = torch.from_numpy(places).to(self._positions.device)
        tables = torch.from_numpy(batch.block_tables[batch.slots[rows]].astype(np.int64))
        self._tables.fill_(self._cache.scratch_block)[index] = tables.to(index.device)
        self._positions.zero_()[index] = torch.from_numpy(positions).to(index.device)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        spec = self._layers[layer]
        self._cache.write(layer, self._write_index, key, value)
        keys = self._cache.layer_keys[layer][self._tables].flatten(1, 2)
        values = self._cache.layer_values[layer][self._tables].flatten(1, 2)
        grouped = query.unflatten(1, (spec.num_kv_heads, -1))
        scores = torch.einsum("thgd,tshd->thgs", grouped, keys) * spec.scaling
        if spec.softcap is not None:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        at = torch.arange(keys.shape[1], device=keys.device)
        visible = at <= self._positions[:, None]
        if spec.window is not None:
            visible &= at > self._positions[:, None] - spec.window
        weights = scores.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1)
        return torch.einsum("thgs,tshd->thgd", weights, values).flatten(1, 2)


@pytest.fixture
def plain_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine capture its steps over `PlainAttention`, and fail where it would not."""

    def capturable(backend: Any, largest: GraphShape, num_columns: int) -> MakeCapturable:
        return lambda shape, write_index: PlainAttention(
            backend._cache, backend._layers, shape, num_columns, write_index
        )

    monkeypatch.setattr(SdpaBackend, "capturable", capturable)


def refuse_eager_steps(executor: TorchExecutor) -> TorchExecutor:
    def refuse(batch: object) -> torch.Tensor:
        raise AssertionError("a step ran eagerly")

    executor._forward = refuse  # type: ignore[method-assign]
    return executor


def captured(model: PreTrainedModel, **settings: Any) -> TorchExecutor:
    return refuse_eager_steps(make_executor(model, **settings))


def outputs(executor: TorchExecutor, sampling: SamplingParams = GREEDY) -> list[list[int]]:
    planner = HandPlanner(executor, chunk_size=7)
    for index, prompt in enumerate(PROMPTS):
        planner.add(str(index), prompt, NUM_TOKENS, sampling)
    return list(planner.run().values())


@pytest.mark.usefixtures("plain_graphs")
@pytest.mark.parametrize("compile_model", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi", "gpt-neox"])
def test_captured_float32_steps_equal_generate_on_the_cpu(family: str, compile_model: bool) -> None:
    model = make_model(family)
    expected = [reference(model, prompt, NUM_TOKENS) for prompt in PROMPTS]

    assert outputs(captured(model.to("cuda"), compile_model=compile_model)) == expected


@pytest.mark.usefixtures("plain_graphs")
def test_a_captured_step_feeds_the_next_one_on_the_device() -> None:
    model = make_model("llama")
    prompts = dict(zip("abc", PROMPTS, strict=True))
    expected = [reference(model, prompt, NUM_TOKENS) for prompt in PROMPTS]
    executor = captured(model.to("cuda"), compile_model=False)
    for seq_id, prompt in prompts.items():
        executor.add(SequenceInput(seq_id, prompt, len(prompt), GREEDY))

    steps = run_two_deep(executor, prompts)
    assert [[step.rows[row].token_ids[0] for step in steps] for row in range(3)] == expected


@pytest.mark.usefixtures("plain_graphs")
def test_captured_steps_sample_the_tokens_that_eager_ones_do() -> None:
    sampling = SamplingParams(
        temperature=0.8, top_p=0.9, seed=5, repetition_penalty=1.3, min_tokens=4, ignore_eos=True
    )
    eager = outputs(make_executor(make_model("llama").to("cuda"), cuda_graphs=False), sampling)

    model = make_model("llama").to("cuda")
    assert outputs(captured(model, compile_model=False), sampling) == eager


@pytest.mark.usefixtures("plain_graphs")
def test_a_corrupted_cache_changes_what_captured_steps_yield() -> None:
    """Negative control: the tests above would notice a wrong key."""
    model = make_model("llama")
    expected = reference(model, PROMPTS[2], NUM_TOKENS)
    executor = captured(model.to("cuda"), compile_model=False)
    planner = HandPlanner(executor)
    sequence = planner.add("a", PROMPTS[2], NUM_TOKENS)
    planner.step()
    executor._cache.keys[:, sequence.blocks[2]] *= -1

    assert planner.run()["a"] != expected


@pytest.mark.parametrize(
    ("family", "wider", "compile_model"),
    [("llama", {}, False), ("mistral-window", {}, False), ("gemma2", {}, False), ("llama", WIDER, True)],
)
def test_captured_flashinfer_agrees_with_sdpa(
    family: str, wider: dict[str, int], compile_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until two tokens are about equally likely, the same tokens with the same probabilities."""
    pytest.importorskip("flashinfer")
    name, sizes = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, (name, {**sizes, **FLASHINFER_SIZES, **wider}))
    runs = []
    for settings in ({"attention_backend": "sdpa"}, {"attention_backend": "flashinfer"}):
        model = make_model(family, scale=2.0).to("cuda", torch.float16)
        executor = make_executor(model, block_size=16, self_check=True, compile_model=compile_model, **settings)
        if settings["attention_backend"] == "flashinfer":
            refuse_eager_steps(executor)
        planner = HandPlanner(executor, chunk_size=7)
        runs.append([planner.add(str(i), prompt, NUM_TOKENS, GREEDY) for i, prompt in enumerate(PROMPTS)])
        planner.run()

    for ours, theirs in zip(*runs, strict=True):
        assert num_alike(ours, theirs) >= 4


def num_alike(ours: Any, theirs: Any) -> int:
    """How many tokens agree from the first on; their log probabilities must be close."""
    pairs = [
        (row.logprobs, other.logprobs)
        for row, other in zip(ours.rows, theirs.rows, strict=True)
        if row.token_ids
    ]
    for count, (one, other) in enumerate(pairs):
        if one.token_id != other.token_id:
            return count
        assert one.logprob == pytest.approx(other.logprob, abs=0.05)
    return len(pairs)


@pytest.mark.usefixtures("plain_graphs")
def test_a_step_of_more_chunks_than_any_graph_holds_runs_eagerly() -> None:
    model = make_model("llama")
    prompts = [make_prompt(3 + index % 5, index) for index in range(70)]
    expected = [reference(model, prompt, 3) for prompt in prompts[:4]]
    executor = make_executor(model.to("cuda"), compile_model=False, num_slots=80, num_blocks=400)
    planner = HandPlanner(executor)
    for index, prompt in enumerate(prompts):
        planner.add(str(index), prompt, 3)

    assert list(planner.run().values())[:4] == expected
