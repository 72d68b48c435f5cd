"""Attention as one opaque operator, for compiled models: the compiler sees a call and looks no further.

What the call does is decided when it runs. The layer's number comes as a tensor: a plain one would be compiled in, so
that each layer needed a compilation of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from transformers import AttentionInterface

OPAQUE_NAME: Final = "tidegate_opaque"

_NUMBER: Final = "tidegate_layer_number"

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`AttentionBackend.attend`: layer, query `[T, heads, dim]`, key, value; returns `[T, heads, dim]`."""


class _Running(threading.local):
    attend: Attend | None = None


_running = _Running()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Route this thread's opaque attention calls to `attend` while the context lasts."""
    previous, _running.attend = _running.attend, attend
    try:
        yield
    finally:
        _running.attend = previous


def number_layers(model: torch.nn.Module) -> None:
    """Give every attention its number as the opaque call takes it; needed before a model set to `OPAQUE_NAME` runs."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            setattr(module, _NUMBER, torch.tensor(module.layer_idx, device="cpu"))


@torch.library.custom_op("tidegate::attend", mutates_args=())
def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    attend = _running.attend
    if attend is None:
        raise RuntimeError(f"a model set to {OPAQUE_NAME} was called outside its engine")
    return attend(int(layer), query, key, value)


@_attend.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    return query.new_empty((query.shape[0], query.shape[1], value.shape[2]))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    layer: Any = getattr(module, _NUMBER)
    out = torch.ops.tidegate.attend(
        query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), layer
    )
    return out[None], None


AttentionInterface.register(OPAQUE_NAME, _attention)
