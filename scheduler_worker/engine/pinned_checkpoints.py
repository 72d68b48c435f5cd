"""KV checkpoints in pinned host memory (CUDA): both ways on streams of their own, beside the steps.

Going out, blocks are gathered in stream order, so the step that follows may overwrite them, and travel while it runs.
Coming back, they travel while the step before runs, to a place of their own; the blocks, which that step may still
write to, are filled in stream order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scheduler_worker.engine.attention.base import to_device
from scheduler_worker.engine.errors import CheckpointDamaged
from scheduler_worker.engine.kv_cache import KVCache
from scheduler_worker.engine.sequences import EngineSequence

_NUM_WARM_UP_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring blocks of the arena, `first` to `last - 1`."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first


class Arena:
    """Pinned memory for so many blocks, `[blocks, layers, block_size, kv_heads, dim]`, handed out in runs.

    Allocating pinned memory takes milliseconds in which no step is launched: it is done once.
    """

    def __init__(self, cache: KVCache, num_blocks: int) -> None:
        self.keys = _pinned(cache.keys, num_blocks)
        self.values = _pinned(cache.values, num_blocks)
        self._free = [Run(0, num_blocks)] if num_blocks else []

    @property
    def num_free(self) -> int:
        return sum(run.size for run in self._free)

    def take(self, num_blocks: int) -> list[Run]:
        """One run if there is one so long, else the longest first; `num_free` says whether there are enough."""
        runs: list[Run] = []
        while num_blocks:
            fitting = [run for run in self._free if run.size >= num_blocks]
            run = min(fitting or self._free, key=lambda one: one.size if fitting else -one.size)
            used = Run(run.first, run.first + min(run.size, num_blocks))
            self._free.remove(run)
            if used.last < run.last:
                self._free.append(Run(used.last, run.last))
            runs.append(used)
            num_blocks -= used.size
        return runs

    def give_back(self, runs: list[Run]) -> None:
        """Free runs; neighbours become one."""
        merged: list[Run] = []
        for run in sorted([*self._free, *runs], key=lambda one: one.first):
            if merged and merged[-1].last == run.first:
                merged[-1] = Run(merged[-1].first, run.last)
            else:
                merged.append(run)
        self._free = merged


def _pinned(cached: torch.Tensor, num_blocks: int) -> torch.Tensor:
    """Host memory for blocks of a cache `[layers, blocks, …]`, block by block."""
    return torch.empty((num_blocks, cached.shape[0], *cached.shape[2:]), dtype=cached.dtype, pin_memory=True)


@dataclass(slots=True)
class _Kept:
    """One checkpoint: its pieces of pinned keys and values, in order, and where in the arena they are."""

    pieces: list[tuple[torch.Tensor, torch.Tensor]]
    runs: list[Run]
    copied: torch.cuda.Event


class PinnedCheckpoints:
    """See the module's text; a `CheckpointStore`."""

    def __init__(self, cache: KVCache, num_blocks: int) -> None:
        self._cache = cache
        self._device = cache.keys.device
        self._by_block = (cache.keys.transpose(0, 1), cache.values.transpose(0, 1))
        self._arena = Arena(cache, num_blocks)
        self._kept: dict[str, _Kept] = {}
        self._out, self._back = torch.cuda.Stream(self._device), torch.cuda.Stream(self._device)
        self._loaded = torch.cuda.Event()
        self._warm_up(tuple(range(min(_NUM_WARM_UP_BLOCKS, num_blocks, cache.shape.num_blocks))))

    def save(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        self.forget(sequence.seq_id)
        self._kept[sequence.seq_id] = self._copy_out(blocks)

    def load(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        kept = self._kept.get(sequence.seq_id)
        if kept is None:
            raise CheckpointDamaged(f"there is no checkpoint of {sequence.seq_id}")
        self._copy_back(kept, blocks)

    def forget(self, seq_id: str) -> None:
        kept = self._kept.pop(seq_id, None)
        if kept is not None:
            self._arena.give_back(kept.runs)

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        self._kept.clear()

    def _copy_out(self, blocks: tuple[int, ...]) -> _Kept:
        current = torch.cuda.current_stream(self._device)
        index = to_device(np.array(blocks, dtype=np.int64), self._device)
        gathered = [cached.index_select(0, index) for cached in self._by_block]
        kept = self._room(len(blocks))
        self._out.wait_stream(current)
        self._out.wait_event(self._loaded)  # who read this room before has read it
        with torch.cuda.stream(self._out):
            begin = 0
            for piece in kept.pieces:
                end = begin + len(piece[0])
                for host, source in zip(piece, gathered, strict=True):
                    host.copy_(source[begin:end], non_blocking=True)
                begin = end
            kept.copied.record(self._out)
        for source in gathered:
            source.record_stream(self._out)
        return kept

    def _copy_back(self, kept: _Kept, blocks: tuple[int, ...]) -> None:
        current = torch.cuda.current_stream(self._device)
        count = min(len(blocks), sum(len(keys) for keys, _ in kept.pieces))
        self._back.wait_event(kept.copied)
        with torch.cuda.stream(self._back):
            staged = [
                torch.cat([piece[which].to(self._device, non_blocking=True) for piece in kept.pieces])
                if len(kept.pieces) > 1
                else kept.pieces[0][which].to(self._device, non_blocking=True)
                for which in (0, 1)
            ]
            self._loaded.record(self._back)
        index = to_device(np.array(blocks[:count], dtype=np.int64), self._device)
        current.wait_event(self._loaded)
        for cached, source in zip(self._by_block, staged, strict=True):
            cached.index_copy_(0, index, source[:count])
            source.record_stream(current)

    def _room(self, num_blocks: int) -> _Kept:
        """From the arena; of its own where a plan swaps out before what it swaps in has left."""
        runs = self._arena.take(num_blocks) if num_blocks <= self._arena.num_free else []
        keys, values = self._arena.keys, self._arena.values
        pieces = [(keys[run.first : run.last], values[run.first : run.last]) for run in runs]
        if num_blocks and not runs:
            pieces = [(_pinned(self._cache.keys, num_blocks), _pinned(self._cache.values, num_blocks))]
        return _Kept(pieces, runs, torch.cuda.Event())

    @torch.inference_mode()
    def _warm_up(self, blocks: tuple[int, ...]) -> None:
        """Once there and back, so that the device's memory for it is there."""
        if blocks:
            kept = self._copy_out(blocks)
            self._copy_back(kept, blocks)
            torch.cuda.synchronize(self._device)
            self._arena.give_back(kept.runs)
