"""The rotary operator in the place of a model's own function: here by torch, on a GPU by a kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from scheduler_worker.engine.inspection import check_logits
from scheduler_worker.engine.rotary import one_rotary_kernel
from tests.engine.models import FAMILIES, make_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same_with_it(family: str) -> None:
    model = make_model(family)
    own = check_logits(model)
    with one_rotary_kernel(model) as replaced:
        ours = check_logits(model)

    assert replaced
    assert torch.allclose(ours, own, atol=1e-5)


def test_the_models_function_is_back_afterwards() -> None:
    original = modeling_llama.apply_rotary_pos_emb
    with one_rotary_kernel(make_model("llama")):
        assert modeling_llama.apply_rotary_pos_emb is not original
    assert modeling_llama.apply_rotary_pos_emb is original


def test_a_function_that_turns_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn_backwards(q: Any, k: Any, cos: Any, sin: Any) -> Any:
        return original(q, k, cos, -sin)

    original = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turn_backwards)
    with one_rotary_kernel(make_model("llama")) as replaced:
        assert not replaced
        assert modeling_llama.apply_rotary_pos_emb is turn_backwards
