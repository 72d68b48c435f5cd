"""Attention by torch's scaled_dot_product_attention over gathered blocks: runs anywhere.

One-token rows are computed in groups of similar context length whose keys and values fit the processor's
cache; each longer chunk by itself over its own context. No mask spans more than one group or one chunk.
Query heads that share a key head are folded into the query's length (one token) or the batch (chunks), so
nothing is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention

from scheduler_worker.engine.attention.base import AttentionBatch, IntArray, LayerSpec, TableArray, to_device
from scheduler_worker.engine.attention.capturable import GraphShape, MakeCapturable
from scheduler_worker.engine.kv_cache import KVCache

_GROUP_BYTES: Final = {"cpu": 768 << 10, "cuda": 1 << 30}
"""Gathered keys and values of one group: what stays in a core's second-level cache."""
_MAX_PADDING: Final = 0.25
"""Share of a group's gathered tokens that may be padding, once a group has more than `_SMALL_CONTEXT` tokens
a row."""
_SMALL_CONTEXT: Final = 64
_ROOM: Final = 4
"""By how many blocks the rows of a plan may outgrow it before groups are formed anew."""


@dataclass(slots=True)
class _DecodeGroup:
    """Consecutive one-token rows; `blocks` `[rows × blocks]`, `mask` `[rows, 1, 1, tokens]` added to the
    scores. `table` `[rows, blocks]` is on the host, where it is the same memory as `blocks`."""

    first: int
    last: int
    num_tokens: int
    table: TableArray
    blocks: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class _PrefillChunk:
    """One row of several tokens, `first` to `last` of the packed input, over the context `from_position` to
    `length`.

    `mask` `[tokens, context]` is True where a query may look; None for plain causal attention to itself.
    """

    first: int
    last: int
    num_context: int
    blocks: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(slots=True)
class _WindowPlan:
    """What one step needs for the layers that share a window. `mask` is that of all one-token rows, `group_of` the
    group of each."""

    groups: list[_DecodeGroup]
    chunks: list[_PrefillChunk]
    mask: torch.Tensor
    group_of: list[int]


class SdpaBackend:
    """See the module's text."""

    name = "sdpa"

    def __init__(
        self, cache: KVCache, layers: tuple[LayerSpec, ...], device: torch.device, max_model_len: int
    ) -> None:
        self._cache = cache
        self._block_size = cache.shape.block_size
        self._max_tokens = -(-max_model_len // self._block_size) * self._block_size
        self._ramp = torch.zeros(2 * self._max_tokens, dtype=cache.shape.dtype, device=device)
        self._ramp[self._max_tokens :] = -torch.inf
        self._on_host = device.type == "cpu"
        self._host_masks = _windows(self._ramp, self._max_tokens) if self._on_host else None
        self._layers = layers
        self._device = device
        self._windows = tuple(dict.fromkeys(layer.window for layer in layers))
        self._plans: dict[int | None, _WindowPlan] = {}
        # On the host: the planned masks `[rows, tokens]`, of the same memory, until a row is longer than a window.
        self._masks: list[npt.NDArray[np.generic]] = []
        self._narrowest = min((one for one in self._windows if one is not None), default=max_model_len)
        self._write_index = torch.empty(0, dtype=torch.int64)
        token_bytes = cache.shape.block_bytes // (cache.shape.num_layers * cache.shape.block_size)
        self._group_tokens = max(1, _GROUP_BYTES[device.type] // token_bytes)

    def prepare(self) -> None:
        """Nothing: torch brings it compiled."""

    def capturable(self, largest: GraphShape, num_columns: int) -> MakeCapturable | None:
        """None: its groups and masks differ in size from step to step."""
        return None

    def plan(self, batch: AttentionBatch) -> None:
        self._write_index = batch.write_index
        if batch.is_next and self._move_on(batch):
            return
        self._masks = []
        self._plans = {window: self._window_plan(batch, window) for window in self._windows}

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        spec = self._layers[layer]
        plan = self._plans[spec.window]
        self._cache.write(layer, self._write_index, key, value)
        if len(plan.groups) == 1 and not plan.chunks:
            return self._attend_group(layer, spec, plan.groups[0], query)
        parts = [
            self._attend_group(layer, spec, group, query[group.first : group.last]) for group in plan.groups
        ]
        for chunk in plan.chunks:
            rows = slice(chunk.first, chunk.last)
            parts.append(self._attend_chunk(layer, spec, chunk, query[rows], key[rows], value[rows]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _move_on(self, batch: AttentionBatch) -> bool:
        """Let every row see its new token too, and leave the plan as it is; whether that is all there is to do."""
        if batch.lengths[-1] > self._narrowest:
            return False
        if not all(self._begin_block(batch, row, plan) for row in batch.begun for plan in self._plans.values()):
            return False
        for mask in self._masks:
            mask[batch.offsets[:-1], batch.starts] = 0
        return True

    def _begin_block(self, batch: AttentionBatch, row: int, plan: _WindowPlan) -> bool:
        """Give the row's group its new block, and the whole group one more if it is the first to need it; whether there
        was room."""
        block, place = int(batch.starts[row]) // self._block_size, plan.group_of[row]
        group = plan.groups[place]
        if block < group.table.shape[1]:
            group.table[row - group.first, block] = batch.block_tables[batch.slots[row], block]
            return True
        if group.num_tokens == plan.mask.shape[3]:
            return False
        blocks = batch.block_tables[batch.slots[group.first : group.last], : block + 1]
        plan.groups[place] = self._decode_group(group.first, group.last, blocks, plan.mask)
        return True

    def _window_plan(self, batch: AttentionBatch, window: int | None) -> _WindowPlan:
        rows = range(batch.num_decode_rows, batch.num_rows)
        chunks = [self._prefill_chunk(batch, row, window) for row in rows]
        if not batch.num_decode_rows:
            return _WindowPlan([], chunks, torch.empty(0), [])
        lengths = batch.lengths[: batch.num_decode_rows]
        if window is None or int(lengths[-1]) <= window:
            spans = lengths
            blocks, mask = self._full_context(batch, lengths)
        else:
            spans = np.minimum(lengths, window) + self._block_size
            blocks, mask = self._latest_context(batch, lengths, window)
        known = spans.tolist()
        bounds = _group_bounds(known, self._group_tokens)
        widths = [-(-known[last - 1] // self._block_size) for _, last in bounds]
        groups = [
            self._decode_group(first, last, blocks[first:last, :width], mask)
            for (first, last), width in zip(bounds, widths, strict=True)
        ]
        group_of = [place for place, group in enumerate(groups) for _ in range(group.first, group.last)]
        return _WindowPlan(groups, chunks, mask, group_of)

    def _decode_group(self, first: int, last: int, blocks: TableArray, mask: torch.Tensor) -> _DecodeGroup:
        """One group with its blocks `[rows, blocks]`; its mask is cut out of that of all rows."""
        num_tokens = blocks.shape[1] * self._block_size
        table = np.ascontiguousarray(blocks)
        ids = torch.from_numpy(table.reshape(-1))
        if not self._on_host:
            ids = ids.to(self._device)
        if last - first < mask.shape[0] or num_tokens < mask.shape[3]:
            mask = mask.narrow(0, first, last - first).narrow(3, 0, num_tokens)
        return _DecodeGroup(first, last, num_tokens, table, ids, mask)

    def _full_context(self, batch: AttentionBatch, lengths: IntArray) -> tuple[TableArray, torch.Tensor]:
        """All blocks of each row; a mask's row is 0 for its context and -inf behind: a window of one long ramp. On the
        host it has room for more."""
        num_blocks = (int(lengths[-1]) - 1) // self._block_size + 1
        blocks = batch.block_tables[batch.slots[: len(lengths)], :num_blocks]
        width = (num_blocks + _ROOM * self._on_host) * self._block_size
        return blocks, self._ramp_windows(self._max_tokens - lengths, min(width, self._max_tokens))

    def _ramp_windows(self, starts: IntArray, width: int) -> torch.Tensor:
        """`[rows, 1, 1, width]` cut from the ramp; on the CPU by numpy, whose small operations cost less."""
        if self._host_masks is not None:
            cut = self._host_masks[starts, None, None, :width]
            self._masks.append(cut[:, 0, 0])
            windows = torch.from_numpy(cut)
            return windows if windows.dtype is self._ramp.dtype else windows.view(self._ramp.dtype)
        windows = self._ramp.unfold(0, width, 1).index_select(0, to_device(starts, self._device))
        return windows[:, None, None, :]

    def _latest_context(
        self, batch: AttentionBatch, lengths: IntArray, window: int
    ) -> tuple[TableArray, torch.Tensor]:
        """The blocks that hold each row's latest `window` tokens, and the mask of those tokens."""
        seen_from = np.maximum(lengths - window, 0)
        first_block = seen_from // self._block_size
        num_blocks = int(((lengths - 1) // self._block_size - first_block).max()) + 1
        columns = first_block[:, None] + np.arange(num_blocks)
        width = batch.block_tables.shape[1]
        found = batch.block_tables[batch.slots[: len(lengths), None], np.minimum(columns, width - 1)]
        blocks = np.where(columns < width, found, np.int32(self._cache.null_block))
        positions = (first_block * self._block_size)[:, None] + np.arange(num_blocks * self._block_size)
        hidden = (positions >= lengths[:, None]) | (positions < seen_from[:, None])
        mask = torch.zeros(hidden.shape, dtype=self._cache.shape.dtype)
        mask.masked_fill_(torch.from_numpy(hidden), -torch.inf)
        return blocks, mask.to(self._device)[:, None, None, :]

    def _prefill_chunk(self, batch: AttentionBatch, row: int, window: int | None) -> _PrefillChunk:
        first, last = int(batch.offsets[row]), int(batch.offsets[row + 1])
        start, length = int(batch.starts[row]), int(batch.lengths[row])
        if start == 0:
            fits = window is None or length <= window
            mask = None if fits else _causal_mask(0, length, 0, window, self._device)
            return _PrefillChunk(first, last, length, None, mask)
        block_size = self._block_size
        seen_from = 0 if window is None else max(start - window + 1, 0)
        first_block = seen_from // block_size
        table = batch.block_tables[batch.slots[row], first_block : (length - 1) // block_size + 1]
        origin = first_block * block_size
        return _PrefillChunk(
            first=first,
            last=last,
            num_context=length - origin,
            blocks=torch.from_numpy(table).to(self._device),
            mask=_causal_mask(start, length, origin, window, self._device),
        )

    def _attend_group(
        self, layer: int, spec: LayerSpec, group: _DecodeGroup, query: torch.Tensor
    ) -> torch.Tensor:
        num_rows = group.last - group.first
        grouped = query.reshape(num_rows, spec.num_kv_heads, -1, spec.key_dim)
        keys, values = self._gather(layer, group.blocks, num_rows, group.num_tokens)
        out = _attention(spec, grouped, keys, values, group.mask)
        return out.reshape(num_rows, spec.num_heads, spec.value_dim)

    def _attend_chunk(
        self,
        layer: int,
        spec: LayerSpec,
        chunk: _PrefillChunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
    ) -> torch.Tensor:
        if chunk.blocks is None:
            keys, values = key.transpose(0, 1)[None], value.transpose(0, 1)[None]
        else:
            keys, values = self._gather(layer, chunk.blocks, 1, -1)
            keys, values = keys[:, :, : chunk.num_context], values[:, :, : chunk.num_context]
        num_tokens = chunk.last - chunk.first
        num_shared = spec.num_heads // spec.num_kv_heads
        folded = query.reshape(num_tokens, spec.num_kv_heads, num_shared, spec.key_dim).permute(2, 1, 0, 3)
        keys = keys.expand(num_shared, -1, -1, -1)
        values = values.expand(num_shared, -1, -1, -1)
        out = _attention(spec, folded, keys, values, chunk.mask)
        return out.permute(2, 1, 0, 3).reshape(num_tokens, spec.num_heads, spec.value_dim)

    def _gather(
        self, layer: int, blocks: torch.Tensor, num_rows: int, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[rows, kv_heads, tokens, dim]` keys and values of these blocks."""
        shape = self._cache.shape
        keys = self._cache.layer_keys[layer].index_select(0, blocks)
        values = self._cache.layer_values[layer].index_select(0, blocks)
        keys = keys.view(num_rows, num_tokens, shape.num_kv_heads, shape.key_dim)
        values = values.view(num_rows, num_tokens, shape.num_kv_heads, shape.value_dim)
        return keys.transpose(1, 2), values.transpose(1, 2)


def _windows(ramp: torch.Tensor, width: int) -> npt.NDArray[np.generic]:
    """All windows of a host tensor, as a view; of bfloat16, which numpy lacks, the bits."""
    values = ramp.view(torch.int16) if ramp.dtype is torch.bfloat16 else ramp
    return np.lib.stride_tricks.sliding_window_view(values.numpy(), width)


def _group_bounds(lengths: list[int], max_tokens: int) -> list[tuple[int, int]]:
    """Cut ascending context lengths into groups of little padding and at most `max_tokens` gathered
    tokens."""
    bounds: list[tuple[int, int]] = []
    first, total = 0, 0
    for row, length in enumerate(lengths):
        count = row - first
        gathered = (count + 1) * length
        wasteful = gathered - total - length > _MAX_PADDING * gathered and length > _SMALL_CONTEXT
        if count and (gathered > max_tokens or wasteful):
            bounds.append((first, row))
            first, total = row, 0
        total += length
    bounds.append((first, len(lengths)))
    return bounds


def _causal_mask(
    start: int, length: int, origin: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """True where the query at position `start + i` sees the key at `origin + j`."""
    queries = torch.arange(start, length, device=device)[:, None]
    keys = torch.arange(origin, length, device=device)
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


def _attention(
    spec: LayerSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """`[batch, heads, queries, dim]`; plain causal when there is no mask."""
    if spec.softcap is not None:
        return _softcapped(spec, query, keys, values, mask)
    return scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=spec.scaling
    )


def _softcapped(
    spec: LayerSpec,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with `softcap × tanh(scores / softcap)`, which the fused kernels do not offer."""
    assert spec.softcap is not None
    scores = torch.matmul(query, keys.transpose(-1, -2)) * spec.scaling
    scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if mask is None:
        num_queries = query.shape[-2]
        mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=query.device).tril_()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(scores.float().softmax(-1).to(values.dtype), values)
