"""Attention by FlashInfer's paged kernels (CUDA, half precision): one call for the one-token rows of a step,
one for its longer chunks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from scheduler_worker.engine.attention.base import AttentionBatch, IntArray, LayerSpec
from scheduler_worker.engine.attention.capturable import CapturableAttention, GraphShape, MakeCapturable
from scheduler_worker.engine.errors import SettingsError
from scheduler_worker.engine.kv_cache import KVCache

logger = logging.getLogger(__name__)

_WORKSPACE_BYTES: Final = 256 << 20
_TRIAL_BYTES: Final = 32 << 20
_TRIAL_BLOCK: Final = 16


@dataclass(slots=True)
class _Pages:
    """Block tables of some rows as FlashInfer reads them: flat block ids, where each row's begin, and how
    many tokens its last block holds; all on the host."""

    indptr: torch.Tensor
    indices: torch.Tensor
    last_page_len: torch.Tensor


class FlashInferBackend:
    """See the module's text. Layers that attend alike share a plan, so a step is planned once per kind of
    layer."""

    name = "flashinfer"

    def __init__(self, cache: KVCache, layers: tuple[LayerSpec, ...], device: torch.device) -> None:
        flashinfer = import_flashinfer()
        _refuse_unfit(cache)
        self._cache = cache
        self._layers = layers
        self._device = device
        self._num_decode_rows = 0
        self._num_tokens = 0
        self._write_index = torch.empty(0, dtype=torch.int64, device=device)
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        kinds = tuple(dict.fromkeys(layers))
        self._decodes = {
            kind: flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
            for kind in kinds
        }
        # Plans live in the workspace: the chunks of a step need one beside that of its one-token rows.
        workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._prefills = {
            kind: flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")
            for kind in kinds
        }

    def prepare(self) -> None:
        """See `compile_kernels`."""
        compile_kernels(self._layers, self._cache.shape.dtype, self._device)

    def capturable(self, largest: GraphShape, num_columns: int) -> MakeCapturable | None:
        """See `AttentionBackend.capturable`."""
        from scheduler_worker.engine.attention.graphed import GraphedAttention, GraphWorkspaces

        workspaces = GraphWorkspaces(self._layers, largest, self._device)

        def make(shape: GraphShape, write_index: torch.Tensor) -> CapturableAttention:
            return GraphedAttention(self._cache, self._layers, shape, workspaces, num_columns, write_index)

        return make

    def plan(self, batch: AttentionBatch) -> None:
        self._num_decode_rows = batch.num_decode_rows
        self._num_tokens = int(batch.offsets[-1])
        self._write_index = batch.write_index
        if batch.num_decode_rows:
            pages = self._pages(batch, 0, batch.num_decode_rows)
            for spec, wrapper in self._decodes.items():
                wrapper.plan(
                    pages.indptr,
                    pages.indices,
                    pages.last_page_len,
                    spec.num_heads,
                    spec.num_kv_heads,
                    spec.key_dim,
                    self._cache.shape.block_size,
                    **_options(spec, self._cache.shape.dtype),
                )
        if batch.num_decode_rows < batch.num_rows:
            self._plan_chunks(batch)

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        spec = self._layers[layer]
        self._cache.write(layer, self._write_index, key, value)
        cache = (self._cache.layer_keys[layer], self._cache.layer_values[layer])
        query = query.contiguous()
        split = self._num_decode_rows
        parts: list[torch.Tensor] = []
        if split:
            parts.append(self._decodes[spec].run(query[:split], cache))
        if split < self._num_tokens:
            parts.append(self._prefills[spec].run(query[split:], cache))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _plan_chunks(self, batch: AttentionBatch) -> None:
        first = batch.num_decode_rows
        pages = self._pages(batch, first, batch.num_rows)
        bounds = torch.from_numpy((batch.offsets[first:] - batch.offsets[first]).astype(np.int32))
        for spec, wrapper in self._prefills.items():
            wrapper.plan(
                bounds,
                pages.indptr,
                pages.indices,
                pages.last_page_len,
                spec.num_heads,
                spec.num_kv_heads,
                spec.key_dim,
                self._cache.shape.block_size,
                causal=True,
                **_options(spec, self._cache.shape.dtype),
            )

    def _pages(self, batch: AttentionBatch, first: int, last: int) -> _Pages:
        block_size = self._cache.shape.block_size
        lengths: IntArray = batch.lengths[first:last]
        counts = -(-lengths // block_size)
        indptr = np.zeros(len(counts) + 1, dtype=np.int32)
        np.cumsum(counts, out=indptr[1:])
        table = batch.block_tables[batch.slots[first:last], : int(counts.max())]
        used = np.arange(table.shape[1]) < counts[:, None]
        return _Pages(
            indptr=torch.from_numpy(indptr),
            indices=torch.from_numpy(table[used]).to(self._device, non_blocking=True),
            last_page_len=torch.from_numpy((lengths - (counts - 1) * block_size).astype(np.int32)),
        )


def compile_kernels(layers: Iterable[LayerSpec], dtype: torch.dtype, device: torch.device) -> None:
    """FlashInfer compiles what layers of such sizes need when it plans their first chunk: minutes without a cache.

    May run in a thread of its own. A second caller waits for the first, and finds everything done.
    """
    wrapper_of = import_flashinfer().BatchPrefillWithPagedKVCacheWrapper
    with torch.cuda.device(device):
        workspace = torch.empty(_TRIAL_BYTES, dtype=torch.uint8, device=device)
        bounds, block, length = torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([2])
        for spec in dict.fromkeys(layers):
            wrapper_of(workspace, "NHD", backend="fa2").plan(
                bounds.int(),
                block.int(),
                torch.zeros(1, dtype=torch.int32, device=device),
                length.int(),
                spec.num_heads,
                spec.num_kv_heads,
                spec.key_dim,
                _TRIAL_BLOCK,
                causal=True,
                **_options(spec, dtype),
            )


def _options(spec: LayerSpec, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "window_left": -1 if spec.window is None else spec.window - 1,
        "logits_soft_cap": spec.softcap,
        "sm_scale": spec.scaling,
        "q_data_type": dtype,
        "kv_data_type": dtype,
    }


def import_flashinfer() -> Any:
    """The package; raises `SettingsError` that says how to install it."""
    try:
        import flashinfer
    except ImportError as error:
        raise SettingsError(
            "engine setting attention_backend is 'flashinfer', which is not installed: "
            "pip install 'tidegate[gpu]', or use 'sdpa'"
        ) from error
    return flashinfer


def can_use_flashinfer(cache: KVCache) -> bool:
    """Whether the package is there and knows these sizes."""
    try:
        _refuse_unfit(cache)
        import_flashinfer()
    except SettingsError as reason:
        logger.info("attention by sdpa: %s", reason)
        return False
    return True


def _refuse_unfit(cache: KVCache) -> None:
    shape = cache.shape
    if cache.keys.device.type != "cuda":
        raise SettingsError("engine setting attention_backend is 'flashinfer', which needs CUDA; use 'sdpa'")
    if shape.dtype not in (torch.float16, torch.bfloat16):
        raise SettingsError(f"flashinfer needs float16 or bfloat16, not {shape.dtype}; use 'sdpa'")
    if shape.key_dim != shape.value_dim or shape.key_dim not in (64, 128, 256):
        raise SettingsError(
            f"flashinfer needs heads of 64, 128 or 256 elements, not {shape.key_dim} and {shape.value_dim}; "
            "use 'sdpa'"
        )
