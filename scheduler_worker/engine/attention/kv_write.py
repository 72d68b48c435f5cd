"""Storing new keys and values in the paged cache with one kernel (CUDA)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scheduler_worker.engine.overlap import launch_options


@triton.jit
def _write_kernel(
    keys,
    values,
    index,
    key_cache,
    value_cache,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_width: tl.constexpr,
    key_dim: tl.constexpr,
    value_width: tl.constexpr,
    value_dim: tl.constexpr,
    block: tl.constexpr,
    overlap: tl.constexpr,
):
    if overlap:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    place = tl.load(index + token)
    offsets = tl.arange(0, block)
    key = tl.load(
        keys + token * key_token_stride + offsets // key_dim * key_head_stride + offsets % key_dim,
        mask=offsets < key_width,
    )
    tl.store(key_cache + place * key_width + offsets, key, mask=offsets < key_width)
    value = tl.load(
        values + token * value_token_stride + offsets // value_dim * value_head_stride + offsets % value_dim,
        mask=offsets < value_width,
    )
    tl.store(value_cache + place * value_width + offsets, value, mask=offsets < value_width)


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> None:
    """Store `[T, kv_heads, dim]` at flat positions `index` `[T]` of contiguous caches
    `[blocks, block_size, kv_heads, dim]`; elements of a head must be adjacent."""
    if keys.stride(2) != 1:
        keys = keys.contiguous()
    if values.stride(2) != 1:
        values = values.contiguous()
    key_width, value_width = keys.shape[1] * keys.shape[2], values.shape[1] * values.shape[2]
    _write_kernel[(keys.shape[0],)](
        keys,
        values,
        index,
        key_cache,
        value_cache,
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        key_width,
        keys.shape[2],
        value_width,
        values.shape[2],
        triton.next_power_of_2(max(key_width, value_width)),
        **launch_options(keys.device),
    )
