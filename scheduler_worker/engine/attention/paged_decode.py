"""Attention of one-token rows over the paged cache by one kernel (CUDA): split contexts are merged by whichever
part ends last, so that a step needs no plan on the host and no second launch.

Online softmax and the merging of parts: Milakov and Gimelshein, "Online normalizer calculation for softmax"; the
split over the context: Dao et al., "Flash-Decoding".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Any, Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.overlap import launch_options

_LOG2_E: Final = 1.4426950408889634
_MIN_DOT_ROWS: Final = 16
_TARGET_PROGRAMS: Final = 512
"""Thread blocks that keep a large device busy, each over a part of one row's context."""
_MAX_PARTS: Final = 16
_MIN_PART_TOKENS: Final = 256
"""A shorter context is not split: merging would cost more than it saves."""


@triton.jit(do_not_specialize=["max_parts"])
def _decode_kernel(
    query,
    key_cache,
    value_cache,
    begins,
    lengths,
    blocks,
    out,
    partial,
    partial_sums,
    arrived,
    scale,
    max_parts,
    num_shared: tl.constexpr,
    num_shared_padded: tl.constexpr,
    num_kv_heads: tl.constexpr,
    key_dim: tl.constexpr,
    value_dim: tl.constexpr,
    key_padded: tl.constexpr,
    value_padded: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
    min_part_tokens: tl.constexpr,
    window: tl.constexpr,
    softcap: tl.constexpr,
    overlap: tl.constexpr,
):
    if overlap:
        gdc_wait()
        gdc_launch_dependents()
    part = tl.program_id(0)
    head = tl.program_id(1)
    row = tl.num_programs(2) - 1 - tl.program_id(2)  # rows come by length: the longest begins first
    length = tl.load(lengths + row)
    first = 0
    if window > 0:
        first = tl.maximum(length - window, 0) // tile * tile
    span = tl.cdiv(tl.cdiv(length - first, max_parts), tile) * tile
    span = tl.maximum(span, min_part_tokens)
    num_parts = tl.cdiv(length - first, span)
    begin = first + part * span
    if begin >= length:
        return
    end = tl.minimum(begin + span, length)

    group = tl.arange(0, num_shared_padded)
    in_group = group < num_shared
    key_at = tl.arange(0, key_padded)
    value_at = tl.arange(0, value_padded)
    heads = head * num_shared + group
    num_heads = num_kv_heads * num_shared
    queries = tl.load(
        query + (row * num_heads + heads[:, None]) * key_dim + key_at[None, :],
        mask=in_group[:, None] & (key_at < key_dim)[None, :],
        other=0.0,
    )
    table = blocks + tl.load(begins + row)
    peak = tl.full([num_shared_padded], -float("inf"), tl.float32)
    total = tl.zeros([num_shared_padded], tl.float32)
    gathered = tl.zeros([num_shared_padded, value_padded], tl.float32)
    for start in tl.range(begin, end, tile):
        tokens = start + tl.arange(0, tile)
        is_there = tokens < end
        block = tl.load(table + tokens // block_size, mask=is_there, other=0).to(tl.int64)
        place = (block * block_size + tokens % block_size) * num_kv_heads + head
        keys = tl.load(
            key_cache + place[None, :] * key_dim + key_at[:, None],
            mask=is_there[None, :] & (key_at < key_dim)[:, None],
            other=0.0,
        )
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        if softcap > 0:
            squashed = 2 * tl.sigmoid(2 * scores / (softcap * 1.4426950408889634)) - 1
            scores = squashed * softcap * 1.4426950408889634
        visible = is_there
        if window > 0:
            visible = is_there & (tokens >= length - window)
        scores = tl.where(visible[None, :], scores, -float("inf"))
        risen = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(risen == -float("inf"), 0.0, risen)
        weights = tl.exp2(scores - shift[:, None])
        faded = tl.exp2(peak - shift)
        total = total * faded + tl.sum(weights, 1)
        values = tl.load(
            value_cache + place[:, None] * value_dim + value_at[None, :],
            mask=is_there[:, None] & (value_at < value_dim)[None, :],
            other=0.0,
        )
        gathered = gathered * faded[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        peak = risen

    to_out = out + (row * num_heads + heads[:, None]) * value_dim + value_at[None, :]
    out_mask = in_group[:, None] & (value_at < value_dim)[None, :]
    if num_parts == 1:
        tl.store(to_out, (gathered / total[:, None]).to(out.dtype.element_ty), mask=out_mask)
        return

    # The peak and the sum of a part lie side by side behind those of the parts before it.
    pair = row * num_kv_heads + head
    slot = (pair * max_parts + part) * num_shared_padded
    at = (slot + group)[:, None] * value_padded + value_at[None, :]
    tl.store(partial + at, gathered)
    tl.store(partial_sums + (slot + group) * 2, peak)
    tl.store(partial_sums + (slot + group) * 2 + 1, total)
    tl.debug_barrier()
    num_before = tl.atomic_add(arrived + pair, 1, sem="acq_rel", scope="gpu")
    if num_before == num_parts - 1:
        tl.debug_barrier()
        peak = tl.full([num_shared_padded], -float("inf"), tl.float32)
        total = tl.zeros([num_shared_padded], tl.float32)
        gathered = tl.zeros([num_shared_padded, value_padded], tl.float32)
        for other in tl.range(0, num_parts):
            slot = (pair * max_parts + other) * num_shared_padded
            other_peak = tl.load(partial_sums + (slot + group) * 2, cache_modifier=".cg")
            other_total = tl.load(partial_sums + (slot + group) * 2 + 1, cache_modifier=".cg")
            at = (slot + group)[:, None] * value_padded + value_at[None, :]
            other_gathered = tl.load(partial + at, cache_modifier=".cg")
            risen = tl.maximum(peak, other_peak)
            shift = tl.where(risen == -float("inf"), 0.0, risen)
            mine, theirs = tl.exp2(peak - shift), tl.exp2(other_peak - shift)
            gathered = gathered * mine[:, None] + other_gathered * theirs[:, None]
            total = total * mine + other_total * theirs
            peak = risen
        tl.store(to_out, (gathered / total[:, None]).to(out.dtype.element_ty), mask=out_mask)
        tl.store(arrived + pair, 0)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the kernel runs: tokens in one tile, warps of a thread block, tiles under way at once."""

    tile: int
    num_warps: int
    num_stages: int


def tuning(num_rows: int, spec: LayerSpec) -> Tuning:
    """What was fastest on an H200 in bfloat16, with 1, 32 and 256 rows and heads of 64 and 128 elements: small thread
    blocks where there are many, or where heads are long."""
    num_pairs = num_rows * spec.num_kv_heads
    if num_pairs < 64 or (num_pairs < 512 and spec.key_dim <= 64):
        return Tuning(128, 4, 2)
    return Tuning(64, 2, 2)


class PagedDecode:
    """One-token rows of up to `max_rows` sequences, with scratch memory for the parts of split contexts.

    Calls of one instance run one after the other on a stream; layers and graphs share it.
    """

    def __init__(self, layers: tuple[LayerSpec, ...], max_rows: int, device: torch.device) -> None:
        most_pairs = max_rows * max(spec.num_kv_heads for spec in layers)
        most_parts = max(int(1.5 * _TARGET_PROGRAMS), most_pairs) * max(map(_padded_group, layers))
        most_values = most_parts * max(_power_of_two(spec.value_dim) for spec in layers)
        self._partial = torch.empty(most_values, dtype=torch.float32, device=device)
        self._sums = torch.empty(2 * most_parts, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(most_pairs, dtype=torch.int32, device=device)

    def run(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor],
        begins: torch.Tensor,
        lengths: torch.Tensor,
        blocks: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """`out` `[rows, heads, value_dim]` from `query` `[rows, heads, key_dim]`, both contiguous.

        Row `i` has `lengths[i]` tokens of context in the blocks `blocks[begins[i]:]` of the caches
        `[blocks, block_size, kv_heads, dim]`; a row of no tokens is left as it is.
        """
        how = tuning(query.shape[0], spec)
        parts = num_parts(query.shape[0], spec)
        num_shared = spec.num_heads // spec.num_kv_heads
        kernel: Any = _decode_kernel[(parts, spec.num_kv_heads, query.shape[0])]
        kernel(
            query,
            *caches,
            begins,
            lengths,
            blocks,
            out,
            self._partial,
            self._sums,
            self._arrived,
            spec.scaling * _LOG2_E,
            parts,
            num_shared,
            _padded_group(spec),
            spec.num_kv_heads,
            spec.key_dim,
            spec.value_dim,
            _power_of_two(spec.key_dim),
            _power_of_two(spec.value_dim),
            caches[0].shape[1],
            how.tile,
            max(_MIN_PART_TOKENS, how.tile),
            spec.window or 0,
            spec.softcap or 0.0,
            num_warps=how.num_warps,
            num_stages=how.num_stages,
            **launch_options(query.device),
        )


def num_parts(num_rows: int, spec: LayerSpec) -> int:
    """Parts of a long context: enough that few rows fill the device, a power of two."""
    wanted = _TARGET_PROGRAMS / (num_rows * spec.num_kv_heads)
    return min(_MAX_PARTS, 2 ** max(0, round(log2(wanted))))


def _padded_group(spec: LayerSpec) -> int:
    return max(_MIN_DOT_ROWS, _power_of_two(spec.num_heads // spec.num_kv_heads))


def _power_of_two(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())
