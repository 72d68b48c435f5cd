"""A model compiled by its parts: the same logits, and no more compilations than there are kinds of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.opaque import OPAQUE_NAME, attending, number_layers
from scheduler_worker.engine.compiling import CompiledParts, first_of_each_kind
from scheduler_worker.engine.inspection import check_logits, inspect_model, own_attention
from scheduler_worker.engine.skinny import skinny_linears
from tests.engine.models import FAMILIES, make_model


class Compiler:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(call, dynamic=True, backend=self.keep)

    def keep(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


def plain_attention(layers: list[int]) -> Callable[..., torch.Tensor]:
    """Attention over the packed tokens of one row; notes which layer asked."""

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        layers.append(layer)
        rows = [one.transpose(0, 1)[None] for one in (query, key, value)]
        out = torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    return attend


def logits(model: PreTrainedModel, parts: CompiledParts, layers: list[int], compiled: bool) -> torch.Tensor:
    number_layers(model)
    with own_attention(model, OPAQUE_NAME), attending(plain_attention(layers)):
        if not compiled:
            return check_logits(model)
        with skinny_linears(model) as num_linears, parts.in_place():
            assert num_linears > 1
            return check_logits(model)


@pytest.fixture(autouse=True)
def fresh_compilations() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_compiled_parts_give_the_models_logits(family: str) -> None:
    model = make_model(family)
    parts = CompiledParts(model, Compiler())
    layers: list[int] = []
    compiled = logits(model, parts, layers, compiled=True)

    assert torch.allclose(compiled, logits(model, parts, [], compiled=False), rtol=1e-5, atol=1e-5)
    assert layers == list(range(model.config.num_hidden_layers))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_more_layers_need_no_more_compilations(family: str) -> None:
    counts = []
    for num_layers in (2, 6):
        torch._dynamo.reset()
        model, compiler = make_model(family, num_hidden_layers=num_layers), Compiler()
        logits(model, CompiledParts(model, compiler), [], compiled=True)
        counts.append(compiler.num_graphs)

    assert counts == [3, 3]  # a layer, the last norm, the rotary tables


def test_the_model_is_its_own_again_afterwards() -> None:
    model, compiler = make_model("llama"), Compiler()
    with CompiledParts(model, compiler).in_place():
        pass
    check_logits(model)

    assert compiler.num_graphs == 0


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_cut_model_has_every_kind_of_its_layers(family: str) -> None:
    model = make_model(family)
    attention = model.config._attn_implementation
    number_layers(model)
    own, specs = check_logits(model), inspect_model(model, family)
    with own_attention(model, OPAQUE_NAME), first_of_each_kind(model, specs):
        asked: list[int] = []
        with attending(plain_attention(asked)):
            check_logits(model)

    assert asked == list(range(len(asked)))
    assert {specs[layer] for layer in asked} == set(specs)
    assert len(asked) == 1 + max(specs.index(spec) for spec in specs)
    model.set_attn_implementation(attention)
    assert torch.allclose(check_logits(model), own)  # and is whole again
