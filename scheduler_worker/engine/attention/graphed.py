"""Paged attention for captured steps: fixed shapes, fixed buffers, new contents in every step.

Rows of one token by our own kernel, longer chunks by FlashInfer's.
"""

from __future__ import annotations

from typing import Any, Final

import flashinfer
import numpy as np
import torch

from scheduler_worker.engine.attention.base import AttentionBatch, IntArray, LayerSpec
from scheduler_worker.engine.attention.capturable import GraphShape, PinnedMirror
from scheduler_worker.engine.attention.kv_write import write_kv
from scheduler_worker.engine.attention.paged_decode import PagedDecode
from scheduler_worker.engine.kv_cache import KVCache

_MIN_WORKSPACE_BYTES: Final = 128 << 20
_MAX_TILE: Final = 128
"""Most query rows, heads that share a key head folded in, that one thread block takes."""
_NUM_SPLITS: Final = 512
"""More thread blocks than FlashInfer ever aims at: two for each multiprocessor."""

_PLAN_BYTES: Final = 1 << 20
"""Room for FlashInfer's lists of tiles, on the device and in pinned memory: a few numbers for each tile. Its
own 8 MiB for each wrapper would add up over all graphs."""


class GraphWorkspaces:
    """Scratch memory of FlashInfer's kernels, shared by all graphs: they run one after the other."""

    def __init__(self, layers: tuple[LayerSpec, ...], largest: GraphShape, device: torch.device) -> None:
        self.decode = PagedDecode(layers, largest.num_decode_rows, device)
        tiles = -(-largest.num_chunk_tokens * _max_shared(layers) // _MAX_TILE) + largest.num_chunks
        self.chunks = _workspace(_split_bytes(layers, tiles, _MAX_TILE), device)


def _max_shared(layers: tuple[LayerSpec, ...]) -> int:
    return max(layer.num_heads // layer.num_kv_heads for layer in layers)


def _split_bytes(layers: tuple[LayerSpec, ...], num_tiles: int, tile: int) -> int:
    """Partial results of a split context, in float32, with their log-sum-exp."""
    each = max(layer.num_heads * (layer.value_dim + 1) for layer in layers) * tile * 4
    return each * max(num_tiles, _NUM_SPLITS // min(layer.num_kv_heads for layer in layers)) + (1 << 20)


def _workspace(num_bytes: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(max(num_bytes, _MIN_WORKSPACE_BYTES), dtype=torch.uint8, device=device)


class GraphedAttention:
    """The attention of one graph.

    `stage` fills the buffers that the captured kernels read; `attend` is captured. Rows and tokens beyond the
    step's own see one token of the cache's scratch block, or nothing.
    """

    def __init__(
        self,
        cache: KVCache,
        layers: tuple[LayerSpec, ...],
        shape: GraphShape,
        workspaces: GraphWorkspaces,
        num_columns: int,
        write_index: torch.Tensor,
    ) -> None:
        self._cache = cache
        self._layers = layers
        self._shape = shape
        self._write_index = write_index
        self._decode: _Rows | None = None
        self._chunks: _Chunks | None = None
        rows, chunks, tokens = shape.num_decode_rows, shape.num_chunks, shape.num_chunk_tokens
        if rows:
            self._decode = _Rows(cache, workspaces.decode, rows, num_columns)
        if chunks:
            self._chunks = _Chunks(cache, layers, workspaces.chunks, chunks, num_columns, tokens)
            self._chunks.capture(np.append(np.minimum(np.arange(chunks), tokens), tokens))

    def stage(self, batch: AttentionBatch) -> None:
        """Describe a step's rows to the captured kernels."""
        split = batch.num_decode_rows
        if self._decode is not None:
            self._decode.stage(batch)
        if self._chunks is not None:
            self._chunks.stage(batch, split, batch.num_rows)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `AttentionBackend.attend`."""
        spec = self._layers[layer]
        cache = (self._cache.layer_keys[layer], self._cache.layer_values[layer])
        write_kv(key, value, self._write_index, *cache)
        query = query.contiguous()
        out = torch.empty_like(query)
        split = self._shape.num_decode_rows
        if self._decode is not None:
            self._decode.attend(spec, query[:split], cache, out[:split])
        if self._chunks is not None:
            self._chunks.wrappers[spec].run(query[split:], cache, out=out[split:])
        return out


class _Rows:
    """The one-token rows of a graph: where each row's blocks begin, its tokens of context, and the blocks, in one
    buffer that one copy sends. Rows beyond the step's own have no tokens."""

    def __init__(self, cache: KVCache, decode: PagedDecode, num_rows: int, num_columns: int) -> None:
        self._decode = decode
        self._num_rows = num_rows
        self._block_size = cache.shape.block_size
        self._mirror = PinnedMirror(num_rows * (2 + num_columns), torch.int32, cache.keys.device)
        self._host = self._cut(self._mirror.host)
        self._device = self._cut(self._mirror.device)

    def _cut(self, whole: Any) -> tuple[Any, Any, Any]:
        rows = self._num_rows
        return whole[:rows], whole[rows : 2 * rows], whole[2 * rows :]

    def stage(self, batch: AttentionBatch) -> None:
        rows = batch.num_decode_rows
        begins, lengths, blocks = self._host
        lengths[:rows] = batch.lengths[:rows]
        lengths[rows:] = 0
        counts = -(-lengths[:rows] // self._block_size)
        ends = np.cumsum(counts)
        begins[:rows] = ends - counts
        table = batch.block_tables[batch.slots[:rows], : int(counts.max(initial=1))]
        used = table[np.arange(table.shape[1]) < counts[:, None]]
        blocks[: len(used)] = used
        self._mirror.upload(2 * self._num_rows + len(used))

    def attend(
        self,
        spec: LayerSpec,
        query: torch.Tensor,
        caches: tuple[torch.Tensor, torch.Tensor],
        out: torch.Tensor,
    ) -> None:
        self._decode.run(spec, query, caches, *self._device, out)


class _Chunks:
    """The chunks of a graph: `num_rows` of them with their block tables.

    One buffer holds, in this order, where each row's queries and blocks begin, how full its last block is,
    and the blocks; one copy sends it.
    """

    def __init__(
        self,
        cache: KVCache,
        layers: tuple[LayerSpec, ...],
        workspace: torch.Tensor,
        num_rows: int,
        num_columns: int,
        max_tokens: int,
    ) -> None:
        device = cache.keys.device
        self._cache = cache
        self._num_rows = num_rows
        self._head = 3 * num_rows + 2
        self._mirror = PinnedMirror(self._head + num_rows * num_columns + max_tokens, torch.int32, device)
        self._host = self._cut(self._mirror.host)
        self._lengths = np.zeros(num_rows, dtype=np.int32)
        offsets, begins, last, blocks = self._cut(self._mirror.device)
        prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper
        self.wrappers = {
            spec: prefill(
                workspace,
                "NHD",
                use_cuda_graph=True,
                qo_indptr_buf=offsets,
                paged_kv_indptr_buf=begins,
                paged_kv_indices_buf=blocks,
                paged_kv_last_page_len_buf=last,
                backend="fa2",
            )
            for spec in dict.fromkeys(layers)
        }
        self._plans = [(wrapper, _window_left(spec), spec) for spec, wrapper in self.wrappers.items()]
        self._max_rows = 0

    def _cut(self, whole: Any) -> tuple[Any, Any, Any, Any]:
        rows = self._num_rows
        return (
            whole[: rows + 1],
            whole[rows + 1 : 2 * rows + 2],
            whole[2 * rows + 2 : self._head],
            whole[self._head :],
        )

    def capture(self, offsets: IntArray) -> None:
        """Fix the launch sizes: `offsets` `[rows + 1]` are the most query tokens this part can hold."""
        self._max_rows = int(offsets[-1])
        for wrapper, _, _ in self._plans:
            plan_bytes = torch.zeros(_PLAN_BYTES, dtype=torch.uint8, device=self._cache.keys.device)
            wrapper.reset_workspace_buffer(wrapper._float_workspace_buffer, plan_bytes)
        lengths = np.diff(offsets)
        counts = -(-lengths // self._cache.shape.block_size)
        num_blocks = int(counts.sum())
        self._fill(offsets, counts, lengths, np.full(num_blocks, self._cache.scratch_block))
        host = tuple(torch.from_numpy(part) for part in self._host)
        for wrapper, window_left, spec in self._plans:
            wrapper.plan(
                host[0],
                host[1],
                host[3][:num_blocks],
                host[2],
                spec.num_heads,
                spec.num_kv_heads,
                spec.key_dim,
                self._cache.shape.block_size,
                causal=True,
                window_left=window_left,
                logits_soft_cap=spec.softcap,
                sm_scale=spec.scaling,
                q_data_type=self._cache.shape.dtype,
                kv_data_type=self._cache.shape.dtype,
            )
        torch.cuda.synchronize()

    def stage(self, batch: AttentionBatch, first: int, last: int) -> None:
        """Rows `first` to `last` of the step; the rest are rows without queries."""
        rows, num_rows = last - first, self._num_rows
        block_size = self._cache.shape.block_size
        lengths = np.zeros(num_rows, dtype=np.int64)
        lengths[:rows] = batch.lengths[first:last]
        counts = -(-lengths // block_size)
        offsets = np.zeros(num_rows + 1, dtype=np.int64)
        offsets[: rows + 1] = batch.offsets[first : last + 1] - batch.offsets[first]
        offsets[rows + 1 :] = offsets[rows]
        table = batch.block_tables[batch.slots[first:last], : int(counts.max(initial=1))]
        used = np.arange(table.shape[1]) < counts[:rows, None]
        self._fill(offsets, counts, lengths, table[used])
        self._plan()

    def _fill(self, offsets: Any, counts: IntArray, lengths: IntArray, blocks: Any) -> None:
        queries, begins, last, table = self._host
        queries[:] = offsets
        begins[0] = 0
        np.cumsum(counts, out=begins[1:])
        last[:] = lengths - (counts - 1).clip(0) * self._cache.shape.block_size
        table[: len(blocks)] = blocks
        self._lengths[:] = lengths
        self._mirror.upload(self._head + len(blocks))

    def _plan(self) -> None:
        """What `wrapper.plan` would do, less the copies made here at once and its loops over rows."""
        offsets, begins, _, _ = self._host
        offsets, begins, lengths = (torch.from_numpy(part) for part in (offsets, begins, self._lengths))
        for wrapper, window_left, spec in self._plans:
            wrapper._plan_info = wrapper._cached_module.plan(
                wrapper._float_workspace_buffer,
                wrapper._int_workspace_buffer,
                wrapper._pin_memory_int_workspace_buffer,
                offsets,
                begins,
                lengths,
                self._max_rows,
                self._num_rows,
                spec.num_heads,
                spec.num_kv_heads,
                self._cache.shape.block_size,
                True,
                spec.key_dim,
                spec.value_dim,
                True,
                window_left,
                -1,
                False,
                0,
            )


def _window_left(spec: LayerSpec) -> int:
    return -1 if spec.window is None else spec.window - 1
