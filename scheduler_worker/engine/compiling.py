"""A model compiled by its parts: all layers of one kind share one compilation.

Traced as a whole, a model of 16 layers takes 14 s of Python at every start, even where each kernel that comes of it is
cached; one layer takes one. The price is one small kernel a layer, since nothing is fused across its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch._inductor import config as inductor_config
from torch.nn import Embedding, Module, ModuleList
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.overlap import overlaps

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


class CompiledParts:
    """The compiled forms of a model's layers and of what stands beside them. They are compiled when first called.

    `compile_call` makes one; `torch.compile` with dynamic shapes unless given.
    """

    def __init__(self, model: PreTrainedModel, compile_call: Compile | None = None) -> None:
        make = compile_call or _compile
        self._forwards = {part: make(part.forward) for part in _parts(model)}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model calls its parts' compiled forms while the context lasts."""
        for part, forward in self._forwards.items():
            part.forward = forward
        try:
            yield
        finally:
            for part in self._forwards:
                del part.forward


@contextmanager
def first_of_each_kind(model: PreTrainedModel, specs: Sequence[LayerSpec]) -> Iterator[None]:
    """The model has only so many of its first layers, while the context lasts, that each kind is among them.

    Enough for a run that is to compile and load what the whole model needs. `specs` says how each layer attends.
    """
    cut: list[tuple[Module, str, ModuleList]] = []
    for owner in list(model.modules()):
        for name, stack in list(owner.named_children()):
            if _is_stack(stack) and len(stack) == len(specs):
                cut.append((owner, name, stack))
    for owner, name, stack in cut:
        layers = list(stack.children())
        setattr(owner, name, ModuleList(layers[: _num_until_each_kind(layers, specs)]))
    try:
        yield
    finally:
        for owner, name, stack in cut:
            setattr(owner, name, stack)


def _num_until_each_kind(layers: Sequence[Module], specs: Sequence[LayerSpec]) -> int:
    kinds = [(spec, *map(_makeup, layer.modules())) for layer, spec in zip(layers, specs, strict=True)]
    return max(kinds.index(kind) for kind in kinds) + 1


def _makeup(part: Module) -> tuple[Any, ...]:
    return type(part), *(one.shape for one in part.parameters(recurse=False))


def _compile(call: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(call, dynamic=True, options=_options())


def _options() -> dict[str, Any]:
    """Compiled kernels begin while those before them end, where device and compiler can."""
    can = torch.cuda.is_available() and overlaps(torch.device("cuda"))
    return {"triton.enable_pdl": True} if can and hasattr(inductor_config.triton, "enable_pdl") else {}


def _parts(model: PreTrainedModel) -> list[Module]:
    """The layers, and their siblings that compute: norms, rotary tables. An embedding is one kernel as it is."""
    found: list[Module] = []
    for owner in model.modules():
        stacks = [child for child in owner.children() if _is_stack(child)]
        if stacks:
            siblings = (child for child in owner.children() if not isinstance(child, ModuleList | Embedding))
            found.extend(chain(*stacks, siblings))
    return found


def _is_stack(module: Module) -> TypeGuard[ModuleList]:
    """Whether these are decoder layers."""
    return isinstance(module, ModuleList) and all(
        any(hasattr(part, "layer_idx") for part in layer.modules()) for layer in module
    )
