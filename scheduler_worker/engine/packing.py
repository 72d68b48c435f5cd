"""Linear layers over weights that are packed once (CPU).

A product of few rows is a read of its matrix. PyTorch's linear layer hands the matrix over as it lies, and the library
arranges it anew at every call; oneDNN multiplies by one that was arranged before. Layers keep their names and their
weights, which others may share.
"""

from __future__ import annotations

import logging
from typing import Final

import psutil
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_TYPES: Final = (torch.float32, torch.bfloat16)
_USUAL_ROWS: Final = 16
_ROOM: Final = 2.0
"""Packed weights come beside the model's own: so many times their size must be free."""


class PackedLinear(nn.Linear):
    """Stands in for one `nn.Linear`."""

    packed: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _product(input, self.packed, self.bias)


@torch.no_grad()
def pack_linears(model: PreTrainedModel) -> int:
    """Pack every linear layer of a model on the CPU; returns how many. None where this build of PyTorch cannot, or
    where memory is short."""
    found = [one for one in model.modules() if type(one) is nn.Linear and _fits(one.weight)]
    num_bytes = sum(one.weight.nbytes for one in found)
    if num_bytes * _ROOM > psutil.virtual_memory().available:
        logger.warning("linear layers stay unpacked: that would take %.1f GiB more", num_bytes / 2**30)
        return 0
    if not all(_works(dtype) for dtype in {one.weight.dtype for one in found}):
        return 0
    for one in found:
        one.packed = _pack(one.weight)
        one.__class__ = PackedLinear
    return len(found)


def unpack_linears(model: PreTrainedModel) -> None:
    """Make the layers what they were."""
    for one in model.modules():
        if type(one) is PackedLinear:
            one.__class__ = nn.Linear
            del one.packed


def _fits(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _TYPES and weight.is_contiguous()


def _works(dtype: torch.dtype) -> bool:
    """Whether this build and this processor multiply packed weights, and rightly."""
    if not torch.backends.mkldnn.is_available():
        return False
    draw = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(size, 64, generator=draw).to(dtype) for size in (4, 32))
    try:
        found = _product(rows, _pack(weight), None)
    except (AttributeError, RuntimeError) as error:  # no such operator, or not for this type
        logger.info("linear layers stay unpacked: %s", error)
        return False
    return torch.allclose(found, linear(rows, weight), rtol=2e-2, atol=2e-2)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _USUAL_ROWS)
    return packed


def _product(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return found
