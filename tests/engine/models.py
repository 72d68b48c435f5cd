"""Small models with random weights, one of each supported family, and their own `generate()` as the
oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from scheduler_worker.engine.errors import SettingsError
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.inspection import own_attention
from scheduler_worker.engine.loading import describe
from scheduler_worker.engine.packing import PackedLinear
from scheduler_worker.engine.settings import EngineSettings

VOCAB = 512
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GQA = {**_SIZES, "num_key_value_heads": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", _GQA),
    # Nine heads over three, like SmolLM2: nothing here is a power of two.
    "llama-9-heads": (
        "Llama",
        {**_SIZES, "hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "qwen2": ("Qwen2", _GQA),
    "qwen2-window": (
        "Qwen2",
        {**_GQA, "use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {**_GQA, "head_dim": 16}),
    "mistral-window": ("Mistral", {**_GQA, "sliding_window": 11}),
    "gemma": ("Gemma", {**_GQA, "tie_word_embeddings": False, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {
            **_GQA,
            "head_dim": 16,
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            **_GQA,
            "tie_word_embeddings": False,
            "head_dim": 16,
            "sliding_window": 10,
            "query_pre_attn_scalar": 16,
        },
    ),
    "phi": ("Phi", {**_SIZES, "num_key_value_heads": 4}),
    "phi3": ("Phi3", _GQA),
    "gpt-neox": ("GPTNeoX", _SIZES),
}


def make_model(
    family: str = "llama", seed: int = 0, scale: float = 4.0, **changed: Any
) -> transformers.PreTrainedModel:
    """A model with random weights, scaled up so that greedy output is not one repeated token."""
    name, sizes = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**sizes | changed)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Gemma scales its embeddings itself; larger still, they would drown what attention adds.
            if parameter.ndim > 1 and not (name.startswith("Gemma") and "embed" in path):
                parameter.mul_(scale)
    model.generation_config.eos_token_id = 2
    return model.eval()


def make_executor(model: transformers.PreTrainedModel, **settings: Any) -> TorchExecutor:
    defaults: dict[str, Any] = {"num_slots": 8, "block_size": 4, "num_blocks": 256, "self_check": False}
    given = EngineSettings(model="random", **{**defaults, **settings})
    return TorchExecutor(describe(model, "random"), given)


def make_prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1000 + length)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


@contextmanager
def plain_linears(model: transformers.PreTrainedModel) -> Iterator[None]:
    """As the model came, also while an engine has packed its weights."""
    packed = [one for one in model.modules() if type(one) is PackedLinear]
    for one in packed:
        one.__class__ = torch.nn.Linear
    try:
        yield
    finally:
        for one in packed:
            one.__class__ = PackedLinear


@torch.inference_mode()
def reference(model: transformers.PreTrainedModel, prompt: list[int], max_new: int) -> list[int]:
    """What the unmodified model generates greedily, its own EOS switched off."""
    with own_attention(model), plain_linears(model):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


__all__ = ["FAMILIES", "SettingsError", "make_executor", "make_model", "make_prompt", "plain_linears", "reference"]
