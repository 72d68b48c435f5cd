"""One matrix product for linear layers that read the same input: query, key and value; gate and up.

Which layers share an input is observed in a forward pass, not read from names. The layers stay in the model, with
their names and their weights, which become views of one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from scheduler_worker.engine.inspection import check_logits


class _Shared:
    """The product of one group, between the first of its layers and the last."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]) -> None:
        self.weight = weight
        self.bias = bias
        self.sizes = sizes
        self.parts: Any = None


class FusedLinear(nn.Module):
    """Stands in for one `nn.Linear` of a group: the first computes for all, each returns its part."""

    def __init__(self, original: nn.Linear, shared: _Shared, index: int, weight: Any, bias: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = original.in_features, original.out_features
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._shared = shared
        self._index = index

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        shared = self._shared
        if self._index == 0:
            shared.parts = self.product(rows, shared.weight, shared.bias).split(shared.sizes, dim=-1)
        part: torch.Tensor = shared.parts[self._index]
        if self._index == len(shared.sizes) - 1:
            shared.parts = None
        return part

    def product(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The whole group's outputs."""
        return linear(rows, weight, bias)


@torch.no_grad()
def fuse_linears(model: PreTrainedModel) -> int:
    """Fuse every group of layers that share an input and an owner; returns how many groups.

    Same values as before up to rounding; memory peaks by one group more than the model.
    """
    groups = [group for group in _groups(model) if _fits(group)]
    for group in groups:
        _fuse(group)
    return len(groups)


_Call = tuple[nn.Module, str, nn.Linear, torch.Tensor]
"""Owner, the layer's name there, the layer, its input."""


def _groups(model: PreTrainedModel) -> Iterator[list[_Call]]:
    """Layers in the order of their calls, cut where the input or the owner changes."""
    calls = _watch(model)
    group: list[_Call] = []
    for call in calls:
        if group and not (call[3] is group[0][3] and call[0] is group[0][0]):
            yield group
            group = []
        group.append(call)
    if group:
        yield group


def _watch(model: PreTrainedModel) -> list[_Call]:
    calls: list[_Call] = []
    hooks = []
    for owner in model.modules():
        for name, child in owner.named_children():
            if type(child) is nn.Linear:
                hooks.append(child.register_forward_pre_hook(_note(calls, owner, name)))
    try:
        check_logits(model)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _note(calls: list[_Call], owner: nn.Module, name: str) -> Any:
    def note(layer: nn.Linear, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append((owner, name, layer, arguments[0]))

    return note


def _fits(group: list[_Call]) -> bool:
    layers = [layer for _, _, layer, _ in group]
    first = layers[0]
    alike = all(
        (layer.bias is None) == (first.bias is None) and layer.weight.dtype == first.weight.dtype
        for layer in layers
    )
    return len(layers) > 1 and len(set(layers)) == len(layers) and alike


def _fuse(group: list[_Call]) -> None:
    layers = [layer for _, _, layer, _ in group]
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    weights = weight.split(sizes)
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    shared = _Shared(weight, bias, sizes)
    for index, (owner, name, layer, _) in enumerate(group):
        setattr(owner, name, FusedLinear(layer, shared, index, weights[index], biases[index]))
