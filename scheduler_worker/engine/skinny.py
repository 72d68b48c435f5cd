"""Linear layers of decode steps by a kernel of our own, in captured models (CUDA).

With few rows a product is a read of its matrix, and what the libraries' kernels lose is their beginning and their
end. Ours begins while the kernel before it ends. Models keep their code and their weights: while a context lasts,
linear layers compute through an operator that takes this kernel where it is the faster one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from scheduler_worker.engine.fusing import FusedLinear


@torch.library.custom_op("tidegate::linear", mutates_args=())
def _linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if rows.device.type == "cuda":
        from scheduler_worker.engine.skinny_kernel import product

        found = product(rows.flatten(0, -2), weight, bias)
        if found is not None:
            return found.unflatten(0, rows.shape[:-1])
    return linear(rows, weight, bias)


@_linear.register_fake
def _(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return rows.new_empty((*rows.shape[:-1], weight.shape[0]))


class _SkinnyLinear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.tidegate.linear(input, self.weight, self.bias)
        return out


class _SkinnyFusedLinear(FusedLinear):
    def product(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = torch.ops.tidegate.linear(rows, weight, bias)
        return out


_STAND_INS: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: _SkinnyLinear,
    FusedLinear: _SkinnyFusedLinear,
}


@contextmanager
def skinny_linears(model: PreTrainedModel) -> Iterator[int]:
    """The model's linear layers compute through the operator while the context lasts; yields how many do.

    Layers of other classes, such as quantised ones, stay as they are.
    """
    found = [(module, type(module)) for module in model.modules() if type(module) in _STAND_INS]
    for module, kind in found:
        module.__class__ = _STAND_INS[kind]
    try:
        yield len(found)
    finally:
        for module, kind in found:
            module.__class__ = kind
