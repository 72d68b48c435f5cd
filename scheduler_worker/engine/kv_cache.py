"""The paged KV cache: where every sequence's keys and values live, in blocks that the core hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
import torch

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.errors import SettingsError
from scheduler_worker.engine.settings import EngineSettings

DEFAULT_FRACTION: Final = {"cpu": 0.2, "cuda": 0.9}
_CUDA_ACTIVATION_RESERVE_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class KVShape:
    """The sizes of a KV cache, in tokens, heads and elements."""

    num_layers: int
    num_blocks: int
    block_size: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in all layers."""
        per_token = self.num_kv_heads * (self.key_dim + self.value_dim) * self.dtype.itemsize
        return self.num_layers * self.block_size * per_token


class KVCache:
    """`keys` and `values`: `[layers, blocks + 2, block_size, kv_heads, head_dim]`.

    The null block belongs to nobody and stays zero: short block tables are padded with it, so that whatever
    is read beside a sequence is finite and masked. Blocks that held NaN are zeroed by `scrub` for the same
    reason. The scratch block is where the padding of a captured step writes; nobody reads it.
    """

    def __init__(self, shape: KVShape, device: torch.device) -> None:
        self.shape = shape
        self.null_block = shape.num_blocks
        self.scratch_block = shape.num_blocks + 1
        head = (shape.num_layers, shape.num_blocks + 2, shape.block_size, shape.num_kv_heads)
        self.keys = _zeros((*head, shape.key_dim), shape.dtype, device)
        self.values = _zeros((*head, shape.value_dim), shape.dtype, device)
        self.layer_keys = tuple(self.keys.unbind(0))
        self.layer_values = tuple(self.values.unbind(0))
        self._flat_keys = tuple(layer.flatten(0, 1) for layer in self.layer_keys)
        self._flat_values = tuple(layer.flatten(0, 1) for layer in self.layer_values)

    @property
    def num_bytes(self) -> int:
        return self.shape.block_bytes * (self.shape.num_blocks + 2)

    def write(self, layer: int, index: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `[T, kv_heads, head_dim]` at flat positions `index` (`block × block_size + offset`)."""
        self._flat_keys[layer].index_copy_(0, index, keys)
        self._flat_values[layer].index_copy_(0, index, values)

    def scrub(self, blocks: list[int]) -> None:
        """Zero these blocks in every layer."""
        index = torch.tensor(blocks, dtype=torch.int64, device=self.keys.device)
        self.keys.index_fill_(1, index, 0)
        self.values.index_fill_(1, index, 0)

    def scrub_tokens(self, blocks: list[int], first: int, last: int) -> None:
        """Zero the tokens `first` to `last - 1` of a sequence with these blocks, in every layer. It takes no memory."""
        size = self.shape.block_size
        for number in range(first // size, -(-last // size)):
            begin, end = max(first - number * size, 0), min(last - number * size, size)
            for cached in (self.keys, self.values):
                cached[:, blocks[number], begin:end].zero_()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU from untouched pages, so that a large cache costs no memory until it is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


def kv_shape(
    layers: tuple[LayerSpec, ...],
    settings: EngineSettings,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    reserved_bytes: int = 0,
) -> KVShape:
    """Size the cache for this model; a size by fraction leaves `reserved_bytes` of the free memory alone.
    Raises `SettingsError` if not even one sequence fits."""
    first = layers[0]
    one = KVShape(
        num_layers=len(layers),
        num_blocks=1,
        block_size=settings.block_size,
        num_kv_heads=first.num_kv_heads,
        key_dim=first.key_dim,
        value_dim=first.value_dim,
        dtype=dtype,
    )
    num_blocks = settings.num_blocks or _affordable_blocks(
        one, settings, device, max_model_len, reserved_bytes
    )
    if num_blocks < 1:
        raise SettingsError(
            f"the KV cache has no room for one block of {one.block_bytes} bytes; "
            "raise kv_bytes or kv_fraction, or lower block_size"
        )
    return KVShape(
        one.num_layers, num_blocks, one.block_size, one.num_kv_heads, one.key_dim, one.value_dim, dtype
    )


def _affordable_blocks(
    shape: KVShape, settings: EngineSettings, device: torch.device, max_model_len: int, reserved_bytes: int
) -> int:
    """Blocks within `kv_bytes`, else within the fraction of free memory: never more than twice what full
    slots use."""
    if settings.kv_bytes is not None:
        return settings.kv_bytes // shape.block_bytes
    fraction = settings.kv_fraction or DEFAULT_FRACTION[device.type]
    wanted = 2 * settings.num_slots * -(-max_model_len // settings.block_size)
    num_bytes = int(max(0, free_bytes(device) - reserved_bytes) * fraction)
    return min(num_bytes // shape.block_bytes, wanted)


def free_bytes(device: torch.device) -> int:
    """Memory that the KV cache may be cut from, in bytes."""
    if device.type == "cuda":
        return max(0, torch.cuda.mem_get_info(device)[0] - _CUDA_ACTIVATION_RESERVE_BYTES)
    return int(psutil.virtual_memory().available)
