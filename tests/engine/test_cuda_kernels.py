"""Our own kernels against plain formulas."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from random import Random

import pytest
import torch

from scheduler_worker.engine.attention.base import LayerSpec
from tests.engine.models import make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BLOCK_SIZE = 16
LENGTHS = [1, 15, 16, 17, 255, 300, 0, 2600]
SPECS = {
    "grouped": LayerSpec(8, 2, 64, 64, 0.125),
    "window": LayerSpec(8, 2, 64, 64, 0.125, window=70),
    "softcap": LayerSpec(9, 3, 64, 64, 0.125, softcap=5.0),
    "odd sizes": LayerSpec(4, 2, 80, 96, 0.1),
    "one head each": LayerSpec(4, 4, 128, 128, 0.09),
}


class Paged:
    """Random caches and rows of `LENGTHS` tokens whose blocks lie anywhere."""

    def __init__(self, spec: LayerSpec, dtype: torch.dtype) -> None:
        draw, generator = Random(1), torch.Generator().manual_seed(0)
        counts = [-(-length // BLOCK_SIZE) for length in LENGTHS]
        places = draw.sample(range(sum(counts) + 50), sum(counts))
        sizes = (sum(counts) + 50, BLOCK_SIZE, spec.num_kv_heads)
        self.keys = torch.randn(*sizes, spec.key_dim, generator=generator).to("cuda", dtype)
        self.values = torch.randn(*sizes, spec.value_dim, generator=generator).to("cuda", dtype)
        self.query = torch.randn(len(LENGTHS), spec.num_heads, spec.key_dim, generator=generator).to(
            "cuda", dtype
        )
        self.tables = [[places.pop() for _ in range(count)] for count in counts]
        begins = [sum(counts[:row]) for row in range(len(counts))]
        self.begins, self.lengths, self.blocks = (
            torch.tensor(values, dtype=torch.int32, device="cuda")
            for values in (begins, LENGTHS, [*chain.from_iterable(self.tables)])
        )

    def expected(self, spec: LayerSpec) -> Iterator[torch.Tensor]:
        for row, (length, table) in enumerate(zip(LENGTHS, self.tables, strict=True)):
            first = 0 if spec.window is None else max(0, length - spec.window)
            keys = self.keys[table].flatten(0, 1)[first:length].float()
            values = self.values[table].flatten(0, 1)[first:length].float()
            query = self.query[row].float().unflatten(0, (spec.num_kv_heads, -1))
            scores = torch.einsum("hgd,nhd->hgn", query, keys) * spec.scaling
            if spec.softcap is not None:
                scores = torch.tanh(scores / spec.softcap) * spec.softcap
            yield torch.einsum("hgn,nhd->hgd", scores.softmax(-1), values).flatten(0, 1)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_paged_decode_equals_plain_attention(spec: LayerSpec, dtype: torch.dtype) -> None:
    """Contexts of several parts, of one, and a row of none, which is left alone."""
    from scheduler_worker.engine.attention.paged_decode import PagedDecode

    paged = Paged(spec, dtype)
    decode = PagedDecode((spec,), len(LENGTHS), torch.device("cuda"))
    for _ in range(2):  # what one call leaves behind must not disturb the next
        out = torch.full((len(LENGTHS), spec.num_heads, spec.value_dim), 7.0, device="cuda", dtype=dtype)
        caches = (paged.keys, paged.values)
        decode.run(spec, paged.query, caches, paged.begins, paged.lengths, paged.blocks, out)

    bound = 1e-5 if dtype is torch.float32 else 2e-2
    for row, expected in enumerate(paged.expected(spec)):
        wanted = expected if LENGTHS[row] else torch.full_like(out[row], 7.0).float()
        assert (out[row].float() - wanted).abs().max() < bound, f"row {row} of {LENGTHS[row]} tokens"


@pytest.mark.parametrize("num_turning", [64, 48])
def test_the_rotary_kernel_equals_the_formula(num_turning: int) -> None:
    from scheduler_worker.engine.rotary import _halves_turned
    from scheduler_worker.engine.rotary_kernel import rotate

    packed = torch.randn(37, (9 + 2 * 3) * 64 + 8, device="cuda")
    query, key = packed[:, : 9 * 64].unflatten(1, (9, 64)), packed[:, 9 * 64 : 12 * 64].unflatten(1, (3, 64))
    cos, sin = (torch.randn(37, num_turning, device="cuda") for _ in range(2))
    turned = rotate(query, key, cos, sin)

    for ours, rows in zip(turned, (query, key), strict=True):
        assert torch.allclose(ours, _halves_turned(rows, cos, sin), atol=1e-5)


@pytest.mark.parametrize("num_swap_blocks", [64, 2], ids=["arena", "more than the arena holds"])
def test_a_swapped_sequence_goes_on_as_if_nothing_had_happened(num_swap_blocks: int) -> None:
    model = make_model("llama")
    prompt = make_prompt(29)
    expected = reference(model, prompt, 14)
    executor = make_executor(model.to("cuda"), swap_bytes=num_swap_blocks * block_bytes())
    planner = HandPlanner(executor, chunk_size=8)
    planner.add("victim", prompt, 14)
    for _ in range(9):
        planner.step()
    planner.swap_out("victim")
    planner.add("newcomer", make_prompt(35, 8), max_new=3)
    planner.free_blocks.sort()
    planner.step()
    planner.step()

    assert planner.run()["victim"] == expected


def block_bytes() -> int:
    return make_executor(make_model("llama").to("cuda"))._cache.shape.block_bytes


@pytest.mark.parametrize("num_out", [128, 576, 36_864], ids=["parts", "fewer parts", "wide"])
@pytest.mark.parametrize("num_rows", [1, 17, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_skinny_product_equals_the_formula(num_out: int, num_rows: int, has_bias: bool) -> None:
    """Rows that lie apart, in 20 captured calls one after the other, each of which reads what the one before wrote."""
    from scheduler_worker.engine.skinny_kernel import product

    draw = torch.Generator().manual_seed(num_out + num_rows)
    rows, weight = torch.randn(num_rows, 4104, generator=draw), torch.randn(num_out, 4096, generator=draw) / 64
    bias = torch.randn(num_out, generator=draw) if has_bias else None
    given = [None if one is None else one.to("cuda", torch.bfloat16) for one in (rows, weight, bias)]
    packed = given[0][:, :4096]
    expected = torch.nn.functional.linear(packed.float(), given[1].float(), None if bias is None else given[2].float())
    product(packed, *given[1:])
    graph, outs = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(20):
            outs.append(product(packed, *given[1:]))
            packed = packed + 0 * outs[-1].sum().nan_to_num(0, 0, 0)
    for _ in range(20):
        graph.replay()

    assert (outs[0].float() - expected).abs().max() < 4e-2
    assert all(torch.equal(one, outs[0]) for one in outs)


def test_a_skinny_product_leaves_what_it_does_not_take() -> None:
    from scheduler_worker.engine.skinny_kernel import product

    def rows(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.zeros(*sizes, device="cuda", dtype=dtype)

    assert product(rows(65, 1024), rows(1024, 1024), None) is None
    assert product(rows(4, 1000), rows(1024, 1000), None) is None
    assert product(rows(4, 1024), rows(1000, 1024), None) is None
    assert product(rows(4, 1024, dtype=torch.float32), rows(1024, 1024, dtype=torch.float32), None) is None
