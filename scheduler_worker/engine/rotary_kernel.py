"""The kernel of `rotary`: queries and keys of packed tokens in one launch."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scheduler_worker.engine.overlap import launch_options


@triton.jit
def _turn(
    rows,
    out,
    token,
    token_stride,
    head_stride,
    cos_first,
    cos_second,
    sin_first,
    sin_second,
    num_heads: tl.constexpr,
    dim: tl.constexpr,
    half: tl.constexpr,
    heads_padded: tl.constexpr,
    half_padded: tl.constexpr,
    rest_padded: tl.constexpr,
):
    head = tl.arange(0, heads_padded)[:, None]
    at = tl.arange(0, half_padded)[None, :]
    mask = (head < num_heads) & (at < half)
    source = rows + token * token_stride + head * head_stride + at
    first = tl.load(source, mask=mask).to(tl.float32)
    second = tl.load(source + half, mask=mask).to(tl.float32)
    target = out + (token * num_heads + head) * dim + at
    kind = out.dtype.element_ty
    tl.store(target, (first * cos_first - second * sin_first).to(kind), mask=mask)
    tl.store(target + half, (second * cos_second + first * sin_second).to(kind), mask=mask)
    if dim > 2 * half:
        at = 2 * half + tl.arange(0, rest_padded)[None, :]
        mask = (head < num_heads) & (at < dim)
        rest = tl.load(rows + token * token_stride + head * head_stride + at, mask=mask)
        tl.store(out + (token * num_heads + head) * dim + at, rest, mask=mask)


@triton.jit
def _rotate_kernel(
    query,
    key,
    cos,
    sin,
    out_query,
    out_key,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    cos_stride,
    sin_stride,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    dim: tl.constexpr,
    half: tl.constexpr,
    heads_padded: tl.constexpr,
    kv_heads_padded: tl.constexpr,
    half_padded: tl.constexpr,
    rest_padded: tl.constexpr,
    overlap: tl.constexpr,
):
    if overlap:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, half_padded)
    mask = at < half
    cos_first = tl.load(cos + token * cos_stride + at, mask=mask).to(tl.float32)[None, :]
    cos_second = tl.load(cos + token * cos_stride + half + at, mask=mask).to(tl.float32)[None, :]
    sin_first = tl.load(sin + token * sin_stride + at, mask=mask).to(tl.float32)[None, :]
    sin_second = tl.load(sin + token * sin_stride + half + at, mask=mask).to(tl.float32)[None, :]
    _turn(
        query, out_query, token, query_token_stride, query_head_stride,
        cos_first, cos_second, sin_first, sin_second,
        num_heads, dim, half, heads_padded, half_padded, rest_padded,
    )  # fmt: skip
    _turn(
        key, out_key, token, key_token_stride, key_head_stride,
        cos_first, cos_second, sin_first, sin_second,
        num_kv_heads, dim, half, kv_heads_padded, half_padded, rest_padded,
    )  # fmt: skip


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[T, heads, dim]` queries and keys, whose first elements turn by `[T, n]` cosines and sines, element `i` with
    `i + n / 2`; contiguous."""
    query, key, cos, sin = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, cos, sin))
    out_query, out_key = query.new_empty(query.shape), key.new_empty(key.shape)
    dim, half = query.shape[2], cos.shape[-1] // 2
    kernel: Any = _rotate_kernel[(query.shape[0],)]
    kernel(
        query, key, cos, sin, out_query, out_key,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), cos.stride(0), sin.stride(0),
        query.shape[1], key.shape[1], dim, half,
        triton.next_power_of_2(query.shape[1]), triton.next_power_of_2(key.shape[1]),
        triton.next_power_of_2(half), triton.next_power_of_2(max(1, dim - 2 * half)),
        **launch_options(query.device),
    )  # fmt: skip
    return out_query, out_key
