"""Find out how a model attends by watching one short forward pass, and refuse what the engine cannot serve.

Nothing is read from family names: a model is supported if every layer calls `AttentionInterface` with
options that the backends know, and if its output with the paged attention equals its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.attention.interface import NAME, AttentionThrough
from scheduler_worker.engine.errors import ModelNotSupported

_KNOWN_LAYER_TYPES: Final = frozenset({"full_attention", "sliding_attention"})
_IGNORED_OPTIONS: Final = frozenset(
    {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position"}
)
_NUM_CHECK_TOKENS: Final = 24


class _Recorder:
    """Stands in for a backend during the probe: notes each layer's options and attends plainly."""

    def __init__(self, model: str) -> None:
        self.layers: dict[int, LayerSpec] = {}
        self._model = model

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        self._refuse_unknown(module, options)
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        spec = LayerSpec(
            num_heads=query.shape[1],
            num_kv_heads=key.shape[1],
            key_dim=key.shape[3],
            value_dim=value.shape[3],
            scaling=scale,
            window=options.get("sliding_window"),
            softcap=options.get("softcap"),
        )
        if module.layer_idx in self.layers:
            raise ModelNotSupported(self._model, f"layer {module.layer_idx} attends more than once")
        self.layers[int(module.layer_idx)] = spec
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    def _refuse_unknown(self, module: torch.nn.Module, options: dict[str, Any]) -> None:
        if not hasattr(module, "layer_idx"):
            raise ModelNotSupported(self._model, f"{type(module).__name__} has no layer_idx")
        if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise ModelNotSupported(self._model, "its attention is not causal")
        known = _IGNORED_OPTIONS | {"sliding_window", "softcap"}
        unknown = sorted(name for name, value in options.items() if value is not None and name not in known)
        if unknown:
            raise ModelNotSupported(self._model, f"its attention asks for {', '.join(unknown)}")


def inspect_model(model: PreTrainedModel, name: str) -> tuple[LayerSpec, ...]:
    """Route the model's attention through the engine and describe its layers; raises `ModelNotSupported`."""
    _refuse_by_config(model, name)
    model.set_attn_implementation(NAME)
    recorder = _Recorder(name)
    with AttentionThrough(recorder):
        check_logits(model)
    return _checked_layers(model, recorder.layers, name)


def _refuse_by_config(model: PreTrainedModel, name: str) -> None:
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise ModelNotSupported(name, "it is an encoder-decoder")
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelNotSupported(name, "its attention is not causal")
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYER_TYPES)
    if unknown:
        raise ModelNotSupported(name, f"it has layers of type {', '.join(unknown)}")
    parameters = inspect.signature(model.forward).parameters
    missing = sorted({"position_ids", "logits_to_keep", "use_cache"} - parameters.keys())
    if missing:
        raise ModelNotSupported(name, f"its forward takes no {', '.join(missing)}")


def _checked_layers(model: PreTrainedModel, found: dict[int, LayerSpec], name: str) -> tuple[LayerSpec, ...]:
    num_layers = int(model.config.get_text_config().num_hidden_layers)
    if sorted(found) != list(range(num_layers)):
        reason = f"{len(found)} of its {num_layers} layers attend through transformers' AttentionInterface"
        raise ModelNotSupported(name, reason)
    layers = tuple(found[index] for index in range(num_layers))
    if len({(layer.num_kv_heads, layer.key_dim, layer.value_dim) for layer in layers}) > 1:
        raise ModelNotSupported(name, "its layers have key or value heads of different sizes")
    return layers


def check_tokens(model: PreTrainedModel) -> torch.Tensor:
    """`[1, T]` token ids spread over the vocabulary."""
    vocab_size = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(1, _NUM_CHECK_TOKENS + 1, device=model.device) * 7919 % vocab_size
    return ids[None]


@torch.inference_mode()
def check_logits(model: PreTrainedModel) -> torch.Tensor:
    """The logits of the last check token, `[vocab]`, in float32."""
    ids = check_tokens(model)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1).logits
    return logits[0, -1].float()


def refuse_if_different(own: torch.Tensor, ours: torch.Tensor, name: str) -> None:
    """Raise `ModelNotSupported` if two `[vocab]` logits do not point the same way (rounding of bfloat16
    apart)."""
    if not bool(own.isfinite().all()):
        raise ModelNotSupported(name, "its own logits are not finite on a short prompt")
    likeness = float(torch.nn.functional.cosine_similarity(own - own.mean(), ours - ours.mean(), dim=0))
    if not likeness > 0.98:
        raise ModelNotSupported(
            name, f"with the paged attention its logits differ from its own (likeness {likeness:.3f} of 1)"
        )


@contextmanager
def own_attention(model: PreTrainedModel, implementation: str = "eager") -> Iterator[None]:
    """The model with its own attention while the context lasts: the reference in tests."""
    previous = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
