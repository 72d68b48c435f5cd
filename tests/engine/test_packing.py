"""Packed linear layers compute what plain ones do, and leave the model as it was."""

from __future__ import annotations

import psutil
import pytest
import torch
from torch import nn

from scheduler_worker.engine import packing
from scheduler_worker.engine.inspection import check_logits
from scheduler_worker.engine.packing import PackedLinear, pack_linears, unpack_linears
from tests.engine.models import FAMILIES, make_executor, make_model, plain_linears

pytestmark = pytest.mark.skipif(
    not packing._works(torch.float32), reason="this build of PyTorch multiplies no packed weights"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_has_the_logits_of_the_plain_one(family: str) -> None:
    model = make_model(family, scale=2.0)
    expected = check_logits(model)
    assert pack_linears(model) > 1
    packed = check_logits(model)
    with plain_linears(model):
        assert torch.equal(check_logits(model), expected)

    assert not torch.equal(packed, torch.zeros_like(packed))
    assert torch.allclose(packed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 300])
def test_a_packed_product_equals_the_formula(dtype: torch.dtype, has_bias: bool, num_rows: int) -> None:
    if not packing._works(dtype):
        pytest.skip(f"this processor multiplies no packed {dtype}")
    draw = torch.Generator().manual_seed(num_rows)
    layer = nn.Linear(96, 130, bias=has_bias, dtype=dtype)
    rows = torch.randn(1, num_rows, 192, generator=draw).to(dtype)[..., ::2]
    expected = nn.functional.linear(rows.double(), layer.weight.double(), layer.bias.double() if has_bias else None)
    layer.packed, layer.__class__ = packing._pack(layer.weight), PackedLinear
    with torch.inference_mode():
        assert (layer(rows).double() - expected).abs().max() < (1e-4 if dtype is torch.float32 else 3e-2)


def test_closing_an_engine_leaves_the_model_as_it_was() -> None:
    model = make_model("llama")
    model.set_attn_implementation("sdpa")
    names, expected = list(model.state_dict()), check_logits(model)
    executor = make_executor(model)
    assert any(type(one) is PackedLinear for one in model.modules())
    assert list(model.state_dict()) == names
    executor.close()
    assert not any(type(one) is PackedLinear or hasattr(one, "packed") for one in model.modules())
    model.set_attn_implementation("sdpa")
    assert torch.equal(check_logits(model), expected)


def test_layers_of_other_classes_and_types_stay() -> None:
    class Own(nn.Linear):
        """As quantised layers are."""

    model = make_model("llama")
    model.lm_head = Own(model.config.hidden_size, model.config.vocab_size, bias=False)
    pack_linears(model)
    assert type(model.lm_head) is Own
    unpack_linears(model)
    assert pack_linears(model.to(torch.float64)) == 0


def test_nothing_is_packed_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama")
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert pack_linears(model) == 0
    assert "stay unpacked" in caplog.text
