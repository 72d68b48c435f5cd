"""What can be loaded, what is refused at start, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from scheduler_worker.core.plan import Capacity
from scheduler_worker.engine import EngineSettings, ModelNotSupported, SettingsError, load_executor
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import describe
from tests.engine.models import FAMILIES, make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner

SMALL: dict[str, Any] = {"device": "cpu", "threads": 1, "num_slots": 4, "num_blocks": 64}


def test_a_saved_model_is_loaded_from_its_folder_and_generates_the_same(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    expected = reference(llama, make_prompt(20), 8)
    llama.save_pretrained(tmp_path)
    executor = load_executor(EngineSettings(model=str(tmp_path), dtype="float32", **SMALL))
    planner = HandPlanner(executor)
    planner.add("a", make_prompt(20), 8)

    assert planner.run()["a"] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "/no/such/folder"}, "no such file or folder"),
        ({"model": "x", "device": "tpu"}, "must be auto, cpu or cuda"),
        ({"model": "x", "num_slots": 0}, "num_slots is 0"),
        ({"model": "x", "kv_fraction": 1.5}, "between 0 and 1"),
        ({"model": "x", "max_in_flight_steps": 0}, "max_in_flight_steps is 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load_executor(EngineSettings(**settings))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="could not be loaded"):
        load_executor(EngineSettings(model=str(tmp_path), **SMALL))


def test_a_context_beyond_the_models_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(SettingsError, match="max_model_len is 999; random has a context of 256"):
        make_executor(llama, max_model_len=999)


def test_flashinfer_is_refused_where_it_cannot_run(llama: PreTrainedModel) -> None:
    with pytest.raises(SettingsError, match="'flashinfer', which"):
        make_executor(llama, attention_backend="flashinfer")


SMALL_CONFIG = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "state space": (
        lambda: transformers.MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=4),
        "no max_position_embeddings",
    ),
    "attention sinks": (
        lambda: transformers.GptOssConfig(
            **SMALL_CONFIG,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=32,
            num_local_experts=2,
            num_experts_per_tok=1,
        ),
        "s_aux",
    ),
    "chunked attention": (
        lambda: transformers.LlamaConfig(**SMALL_CONFIG, layer_types=["chunked_attention"] * 2),
        "chunked_attention",
    ),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_cannot_be_served_is_refused_with_the_reason(kind: str) -> None:
    config, words = UNSUPPORTED[kind]
    model = transformers.AutoModelForCausalLM.from_config(config(), dtype=torch.float32)
    with pytest.raises(ModelNotSupported, match=words):
        make_executor(model)


def test_the_self_check_refuses_a_model_whose_attention_we_get_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scheduler_worker.engine.attention.sdpa import SdpaBackend

    attend = SdpaBackend.attend

    def wrong(self: SdpaBackend, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        return attend(self, layer, *tensors).flip(0)

    monkeypatch.setattr(SdpaBackend, "attend", wrong)
    with pytest.raises(ModelNotSupported, match="differ from its own"):
        make_executor(make_model(), self_check=True)


def test_long_rotary_scaling_is_served_up_to_the_length_where_it_would_switch() -> None:
    """Beyond, one long sequence in the batch would change the tokens of all others."""
    _, sizes = FAMILIES["llama"]
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)

    assert make_executor(model).capacity.max_model_len == 64


def capacity_with(llama: PreTrainedModel, **settings: Any) -> Capacity:
    return TorchExecutor(
        describe(llama, "random"), EngineSettings(model="random", self_check=False, **settings)
    ).capacity


def test_the_cache_takes_the_bytes_it_is_given(llama: PreTrainedModel) -> None:
    # 3 layers × 16 tokens × 2 key heads × 16 elements × (keys and values) × 4 bytes = 12,288 bytes a block
    assert capacity_with(llama, kv_bytes=100 * 12_288 + 5).num_blocks == 100


def test_a_small_cache_bounds_the_context(llama: PreTrainedModel) -> None:
    assert capacity_with(llama, num_blocks=5).max_model_len == 80


def test_checkpoint_memory_is_counted_in_blocks(llama: PreTrainedModel) -> None:
    assert capacity_with(llama, num_blocks=8, swap_bytes=50 * 12_288).num_swap_blocks == 50


def test_a_cache_too_small_for_one_block_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(SettingsError, match="no room for one block"):
        capacity_with(llama, kv_bytes=1)
