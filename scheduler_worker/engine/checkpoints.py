"""KV checkpoints: the blocks of a preempted sequence, kept in host memory or as safetensors files.

On CUDA, those kept in memory are `pinned_checkpoints`'. For a file the blocks are gathered in stream order, so they
may be overwritten by the step that follows, and travel to pinned memory on a stream of their own; a thread of its own
writes it, and whoever loads one waits for it.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scheduler_worker.engine.attention.base import to_device
from scheduler_worker.engine.errors import CheckpointDamaged
from scheduler_worker.engine.kv_cache import KVCache
from scheduler_worker.engine.sequences import EngineSequence

_MAX_FILE_AGE_S: Final = 24 * 3600.0


@dataclass(slots=True)
class HostBlocks:
    """`[layers, blocks, block_size, kv_heads, dim]` on the host; readable once `copied` is."""

    keys: torch.Tensor
    values: torch.Tensor
    copied: torch.cuda.Event | None = None

    def wait(self) -> HostBlocks:
        """Wait until the device has written it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self


class CheckpointStore(Protocol):
    """Where checkpoints are kept, by sequence."""

    def save(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        """Keep these blocks; they may be overwritten afterwards. Replaces an older checkpoint."""

    def load(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        """Copy the checkpoint into these blocks; raises `CheckpointDamaged`. It is kept until `forget`."""

    def forget(self, seq_id: str) -> None:
        """Drop a checkpoint; unknown ids are ignored."""

    def close(self) -> None:
        """Finish what is under way."""


class BlockCopier:
    """Moves blocks between the cache and the host."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._device = cache.keys.device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def to_host(self, blocks: tuple[int, ...]) -> HostBlocks:
        index = to_device(np.array(blocks, dtype=np.int64), self._device)
        keys, values = self._cache.keys.index_select(1, index), self._cache.values.index_select(1, index)
        return HostBlocks(keys, values) if self._stream is None else self._download(keys, values)

    def to_device(self, host: HostBlocks, blocks: tuple[int, ...]) -> None:
        count = min(len(blocks), host.keys.shape[1])
        index = to_device(np.array(blocks[:count], dtype=np.int64), self._device)
        for cached, kept in ((self._cache.keys, host.keys), (self._cache.values, host.values)):
            cached.index_copy_(1, index, kept[:, :count].to(self._device, non_blocking=True))

    def _download(self, keys: torch.Tensor, values: torch.Tensor) -> HostBlocks:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host = HostBlocks(_to_pinned(keys), _to_pinned(values), torch.cuda.Event())
            assert host.copied is not None
            host.copied.record(self._stream)
        keys.record_stream(self._stream)
        values.record_stream(self._stream)
        return host


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class MemoryCheckpoints:
    """Checkpoints in host memory, on a CPU; the core's `num_swap_blocks` bounds them."""

    def __init__(self, cache: KVCache) -> None:
        self._copier = BlockCopier(cache)
        self._kept: dict[str, HostBlocks] = {}

    def save(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        self._kept[sequence.seq_id] = self._copier.to_host(blocks)

    def load(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        host = self._kept.get(sequence.seq_id)
        if host is None:
            raise CheckpointDamaged(f"there is no checkpoint of {sequence.seq_id}")
        self._copier.to_device(host.wait(), blocks)

    def forget(self, seq_id: str) -> None:
        self._kept.pop(seq_id, None)

    def close(self) -> None:
        self._kept.clear()


class DiskCheckpoints:
    """Checkpoints as one safetensors file each, which another process with the same model can load."""

    def __init__(self, cache: KVCache, folder: Path, fingerprint: str) -> None:
        self._copier = BlockCopier(cache)
        self._folder = folder
        self._fingerprint = f"{fingerprint}:{cache.shape.block_size}:{cache.shape.dtype}"
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="kv-checkpoint")
        self._writes: dict[str, Future[None]] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_old(folder)

    def save(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        host = self._copier.to_host(blocks)
        num_tokens = len(blocks) * host.keys.shape[2]
        labels = {"model": self._fingerprint, "tokens": _tokens_digest(sequence, num_tokens)}
        labels["num_tokens"] = str(min(num_tokens, len(sequence.tokens)))
        path = self._path(sequence.seq_id)
        self._writes[sequence.seq_id] = self._writer.submit(_write, path, host, labels)

    def load(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        try:
            self._finish_write(sequence.seq_id)
            host, labels = _read(self._path(sequence.seq_id))
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointDamaged(f"the checkpoint of {sequence.seq_id} is unreadable: {error}") from error
        self._refuse_foreign(sequence, host, labels)
        self._copier.to_device(host, blocks)

    def forget(self, seq_id: str) -> None:
        write = self._writes.pop(seq_id, None)
        path = self._path(seq_id)
        if write is not None or path.exists():
            self._writer.submit(path.unlink, missing_ok=True)

    def close(self) -> None:
        self._writer.shutdown(wait=True)

    def _finish_write(self, seq_id: str) -> None:
        write = self._writes.get(seq_id)
        if write is not None:
            write.result()

    def _refuse_foreign(self, sequence: EngineSequence, host: HostBlocks, labels: dict[str, str]) -> None:
        what = f"the checkpoint of {sequence.seq_id}"
        if labels.get("model") != self._fingerprint:
            raise CheckpointDamaged(f"{what} comes from another model, dtype or block size")
        if labels.get("content") != _content_digest(host):
            raise CheckpointDamaged(f"{what} does not match its digest")
        num_tokens = int(labels["num_tokens"])
        if num_tokens > len(sequence.tokens) or labels["tokens"] != _tokens_digest(sequence, num_tokens):
            raise CheckpointDamaged(f"{what} holds other tokens")

    def _path(self, seq_id: str) -> Path:
        return self._folder / f"{blake2b(seq_id.encode(), digest_size=16).hexdigest()}.safetensors"


def _write(path: Path, host: HostBlocks, labels: dict[str, str]) -> None:
    """Write beside and rename: a file under its final name is whole."""
    host.wait()
    metadata = {**labels, "content": _content_digest(host)}
    partial = path.with_suffix(".partial")
    save_file({"keys": host.keys, "values": host.values}, partial, metadata=metadata)
    partial.replace(path)


def _read(path: Path) -> tuple[HostBlocks, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return HostBlocks(file.get_tensor("keys"), file.get_tensor("values")), file.metadata() or {}


def _content_digest(host: HostBlocks) -> str:
    digest = blake2b(digest_size=16)
    for tensor in (host.keys, host.values):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokens_digest(sequence: EngineSequence, num_tokens: int) -> str:
    tokens = np.frombuffer(sequence.tokens[:num_tokens], dtype=np.uint32)
    return blake2b(tokens.tobytes(), digest_size=16).hexdigest()


def _remove_old(folder: Path) -> None:
    """Files of requests that ended elsewhere."""
    oldest = time.time() - _MAX_FILE_AGE_S
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.partial")):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
