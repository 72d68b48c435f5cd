"""The kernel of `skinny`: a few rows by a large matrix, split over the matrix's columns where it has few rows."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scheduler_worker.engine.overlap import launch_options

_TILE: Final = 128
"""Elements of the inner dimension that are multiplied at once."""
_MIN_ROWS: Final = 16
MAX_ROWS: Final = 64
"""With more, the libraries' kernels are faster."""
_MAX_SPLIT: Final = 8
_MAX_GROUPS: Final = 8192


_TYPES: Final = (torch.bfloat16, torch.float16)


@triton.jit
def _product_kernel(
    rows,
    weight,
    bias,
    out,
    partial,
    arrived,
    num_rows,
    num_out,
    num_in,
    row_stride,
    padded_rows: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    split: tl.constexpr,
    num_stages: tl.constexpr,
    has_bias: tl.constexpr,
    overlap: tl.constexpr,
):
    if overlap:
        gdc_wait()
        gdc_launch_dependents()
    group, part = tl.program_id(0), tl.program_id(1)
    outputs = group * block + tl.arange(0, block)
    row = tl.arange(0, padded_rows)
    inner = tl.arange(0, tile)
    is_row = (row < num_rows)[None, :]
    tiles = num_in // tile // split
    to_weight = weight + outputs[:, None].to(tl.int64) * num_in + inner[None, :]
    to_rows = rows + row[None, :].to(tl.int64) * row_stride + inner[:, None]
    total = tl.zeros((block, padded_rows), tl.float32)
    for number in tl.range(part * tiles, part * tiles + tiles, num_stages=num_stages):
        weights = tl.load(to_weight + number * tile, eviction_policy="evict_first")
        values = tl.load(to_rows + number * tile, mask=is_row, other=0.0)
        total = tl.dot(weights, values, total)

    if split > 1:
        # Whoever of a group ends last adds the parts up, in their order: the same bits every time.
        within = tl.arange(0, block)[:, None] * padded_rows + row[None, :]
        tl.store(partial + (group * split + part) * block * padded_rows + within, total)
        tl.debug_barrier()
        num_before = tl.atomic_add(arrived + group, 1, sem="acq_rel", scope="gpu")
        if num_before < split - 1:
            return
        tl.debug_barrier()
        total = tl.zeros((block, padded_rows), tl.float32)
        for other in tl.range(0, split):
            at = partial + (group * split + other) * block * padded_rows + within
            total += tl.load(at, cache_modifier=".cg")
        tl.store(arrived + group, 0)
    if has_bias:
        total += tl.load(bias + outputs)[:, None].to(tl.float32)
    to_out = out + row[None, :].to(tl.int64) * num_out + outputs[:, None]
    tl.store(to_out, total.to(out.dtype.element_ty), mask=is_row)


class _Tuning(NamedTuple):
    """How the kernel runs: outputs of a thread block, parts of the inner dimension, tiles under way, warps."""

    block: int
    split: int
    num_stages: int
    num_warps: int


def tuning(num_rows: int, num_out: int, num_in: int, num_processors: int) -> _Tuning | None:
    """What was fastest on an H200 between other kernels, for 16, 32 and 64 rows and the layers of models of 1 and 8
    billion weights. None: sizes that the kernel does not take."""
    if num_in % _TILE:
        return None
    if num_out % 128 == 0 and num_out >= 120 * num_processors:
        return _Tuning(128, 1, 4, 8)
    if num_out % 64:
        return None
    split = 1
    while split < _MAX_SPLIT and num_out // 64 * split < 0.7 * num_processors and _divides(2 * split, num_in):
        split *= 2
    return _Tuning(64, split, 6 if num_rows <= 32 else 4, 4)


def _divides(split: int, num_in: int) -> bool:
    return num_in % (_TILE * split) == 0 and num_in // (_TILE * split) >= 4


@cache
def _scratch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums and how many parts of a group are done; calls run one after the other on a stream and share them."""
    most_values = 2 * _num_processors(device) * 64 * MAX_ROWS
    partial = torch.empty(most_values, dtype=torch.float32, device=device)
    return partial, torch.zeros(_MAX_GROUPS, dtype=torch.int32, device=device)


@cache
def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`[T, out]` from `[T, in]` and `[out, in]`, summed in float32; None where the kernel does not fit."""
    num_rows, (num_out, num_in) = rows.shape[0], weight.shape
    how = tuning(num_rows, num_out, num_in, _num_processors(rows.device))
    if how is None or num_rows > MAX_ROWS or rows.dtype not in _TYPES or not weight.is_contiguous():
        return None
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    padded = max(_MIN_ROWS, triton.next_power_of_2(num_rows))
    out = rows.new_empty((num_rows, num_out))
    groups = num_out // how.block
    partial, arrived = _scratch(rows.device)
    kernel: Any = _product_kernel[(groups, how.split)]
    kernel(
        rows, weight, weight if bias is None else bias, out, partial, arrived,
        num_rows, num_out, num_in, rows.stride(0),
        padded, how.block, _TILE, how.split, how.num_stages, bias is not None,
        num_warps=how.num_warps, **launch_options(rows.device),
    )  # fmt: skip
    return out
