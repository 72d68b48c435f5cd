"""Rotary embedding of queries and keys by one kernel, in captured models (CUDA).

Compiled as part of the model, it takes two kernels a layer, and every layer computes the sines and cosines anew.
As an opaque operator it takes one, and they are computed once a step. Models keep their code: while a context
lasts, the function by which a model's attention rotates is replaced by this one, if both give the same on random
vectors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch
from transformers import PreTrainedModel

_FUNCTION: Final = "apply_rotary_pos_emb"
_PROBE_DIM: Final = 32

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@torch.library.custom_op("tidegate::rotate", mutates_args=())
def _rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if query.device.type != "cuda":
        return _halves_turned(query, cos, sin), _halves_turned(key, cos, sin)
    from scheduler_worker.engine.rotary_kernel import rotate

    return rotate(query, key, cos, sin)


@_rotate.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _halves_turned(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`[T, heads, dim]`, whose first elements turn by `[T, n]` cosines and sines, element `i` with `i + n / 2`."""
    turning, rest = rows[..., : cos.shape[-1]], rows[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
    return torch.cat((turned, rest), dim=-1)


def _packed_rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """In the place of a model's function: `[1, heads, T, dim]` in and out."""
    query, key = torch.ops.tidegate.rotate(q[0].transpose(0, 1), k[0].transpose(0, 1), cos[0], sin[0])
    return query.transpose(0, 1)[None], key.transpose(0, 1)[None]


@contextmanager
def one_rotary_kernel(model: PreTrainedModel) -> Iterator[bool]:
    """Packed forward passes of the model rotate by one kernel while the context lasts; yields whether they do."""
    module = _rotating_module(model)
    original = getattr(module, _FUNCTION, None)
    if module is None or original is None or not _turns_halves(original):
        yield False
        return
    setattr(module, _FUNCTION, _packed_rotary)
    try:
        yield True
    finally:
        setattr(module, _FUNCTION, original)


def _rotating_module(model: PreTrainedModel) -> ModuleType | None:
    """The Python module whose code the model's attention runs."""
    layers = {type(one).__module__ for one in model.modules() if hasattr(one, "layer_idx")}
    names = [name for name in layers if hasattr(sys.modules.get(name), _FUNCTION)]
    return sys.modules[names[0]] if len(names) == 1 else None


def _turns_halves(rotate: Rotate) -> bool:
    """Whether the function does what the kernel does, on random vectors, of which all or only a part turns."""
    return _alike(rotate, _PROBE_DIM) is True and _alike(rotate, _PROBE_DIM // 2) is not False


def _alike(rotate: Rotate, num_turning: int) -> bool | None:
    """None: the function refuses such vectors."""
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, 3, _PROBE_DIM, generator=draw) for heads in (4, 2))
    cos, sin = (torch.randn(1, 3, num_turning, generator=draw) for _ in range(2))
    try:
        theirs = rotate(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError):
        return None
    ours = _packed_rotary(query, key, cos, sin)
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        for one, other in zip(ours, theirs, strict=True)
    )
