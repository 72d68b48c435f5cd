"""A head start for attention kernels that take long to compile: while the weights are read."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from transformers import PretrainedConfig

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.errors import EngineError

logger = logging.getLogger(__name__)


def compile_attention_ahead(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Begin in a thread of its own, where there is something to compile. The engine compiles what it needs in any case;
    a wrong guess or a failure here costs nothing but time."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        threading.Thread(target=_compile, args=(config, dtype, device), name="attention-ahead", daemon=True).start()


def _compile(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    from scheduler_worker.engine.attention.flashinfer import compile_kernels

    try:
        compile_kernels(likely_layers(config), dtype, device)
    except (EngineError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        logger.info("attention is compiled with the engine, not ahead of it: %s", error)


def likely_layers(config: PretrainedConfig) -> tuple[LayerSpec, ...]:
    """How the layers of such a model will probably attend; `inspect_model` finds out how they do."""
    text: Any = config.get_text_config()
    num_heads = text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    window = getattr(text, "sliding_window", None)
    types = set(getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    return tuple(
        LayerSpec(
            num_heads=num_heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or num_heads,
            key_dim=dim,
            value_dim=dim,
            scaling=dim**-0.5,
            window=window if kind == "sliding_attention" else None,
            softcap=getattr(text, "attn_logit_softcapping", None),
        )
        for kind in sorted(types)
    )
