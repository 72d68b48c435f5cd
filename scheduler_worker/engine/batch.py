"""Packing: the plan's chunks as one row of tokens, `[1, T]`, with everything the forward pass needs beside
it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scheduler_worker.core.chunks import DecodeRows, StepChunks
from scheduler_worker.core.plan import Chunk
from scheduler_worker.engine.attention.base import AttentionBatch, BoolArray, IntArray, TableArray, to_device
from scheduler_worker.engine.sampling import SampleRows
from scheduler_worker.engine.sequences import EngineSequence

Row = tuple[int, EngineSequence, Chunk]
"""A chunk that will be computed: its place in the plan, its sequence, itself."""


@dataclass(slots=True)
class PackedBatch:
    """`input_ids` and `position_ids` are `[1, T]` and `last_tokens` `[rows]`, on the host until `to` sends
    them. Tokens that only the device knows so far, at `fed_positions` of the packed input, come from the
    sampled tokens of `fed_slots`."""

    rows: list[Row]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    last_tokens: torch.Tensor
    attention: AttentionBatch
    sampling: SampleRows
    fed_positions: list[int]
    fed_slots: list[int]

    def to(self, device: torch.device) -> None:
        """Move what the forward pass reads."""
        self.input_ids = to_device(self.input_ids, device)
        self.position_ids = to_device(self.position_ids, device)
        self.last_tokens = to_device(self.last_tokens, device)
        self.attention.write_index = to_device(self.attention.write_index, device)


@dataclass(slots=True)
class SteadyRows:
    """What does not change while the same rows decode, in packing order: `places` in the plan, `slots`, and
    `offsets`, which added to the step's number are the positions to compute. `source` is the plan's own."""

    source: DecodeRows
    places: list[int]
    sequences: list[EngineSequence]
    slots: IntArray
    offsets: IntArray
    bounds: IntArray
    num_prompt: IntArray
    samples: BoolArray
    last_tokens: torch.Tensor

    @classmethod
    def of(cls, source: DecodeRows, step: int, batch: PackedBatch) -> SteadyRows:
        """From a step of nothing but these rows, as it was packed."""
        attention, sampling = batch.attention, batch.sampling
        return cls(
            source=source,
            places=[place for place, _, _ in batch.rows],
            sequences=[sequence for _, sequence, _ in batch.rows],
            slots=attention.slots,
            offsets=attention.starts - step,
            bounds=attention.offsets,
            num_prompt=attention.lengths - sampling.indices,
            samples=sampling.samples,
            last_tokens=batch.last_tokens,
        )

    def rows(self, chunks: StepChunks) -> list[Row]:
        """This step's rows, in packing order."""
        whole = chunks.whole()
        return [(place, one, whole[place]) for place, one in zip(self.places, self.sequences, strict=True)]


class Packer:
    """Lays out rows: those of one token first, by context length, then longer chunks."""

    def __init__(self, block_tables: TableArray, block_size: int) -> None:
        self._block_tables = block_tables
        self._block_size = block_size
        num_slots = block_tables.shape[0]
        self._places = np.arange(num_slots + 1, dtype=np.int64)
        self._place_ids = torch.arange(num_slots)
        self._all_true = np.ones(num_slots, dtype=bool)

    def pack(self, rows: list[Row]) -> PackedBatch:
        """The rows' tokens as one; `rows` is reordered in place."""
        rows.sort(key=_packing_order)
        if rows[-1][2].num_tokens == 1:
            return self._pack_decodes(rows)
        return self._pack_mixed(rows)

    def pack_steady(self, rows: list[Row], steady: SteadyRows, step: int) -> PackedBatch:
        """`pack` for rows that decoded before: only positions and tokens are new."""
        tokens, fed = _single_tokens(rows)
        starts = steady.offsets + step
        return self._batch(
            rows,
            layout=(starts, steady.slots, starts + 1, steady.bounds, steady.num_prompt),
            tokens=(np.array(tokens, dtype=np.int64), starts, steady.slots),
            last_tokens=steady.last_tokens,
            fed=(fed, [rows[place][2].slot for place in fed]),
            samples=steady.samples,
        )

    def _pack_decodes(self, rows: list[Row]) -> PackedBatch:
        """One token a row: positions are starts, and each row's last token is the row itself."""
        num_rows = len(rows)
        tokens, fed = _single_tokens(rows)
        starts, slots, input_ids, num_prompt = np.array(
            [
                [chunk.start for _, _, chunk in rows],
                [chunk.slot for _, _, chunk in rows],
                tokens,
                [sequence.num_prompt_tokens for _, sequence, _ in rows],
            ],
            dtype=np.int64,
        )
        return self._batch(
            rows,
            layout=(starts, slots, starts + 1, self._places[: num_rows + 1], num_prompt),
            tokens=(input_ids, starts, slots),
            last_tokens=self._place_ids[:num_rows],
            fed=(fed, [rows[place][2].slot for place in fed]),
            samples=self._samples(rows),
        )

    def _pack_mixed(self, rows: list[Row]) -> PackedBatch:
        starts = np.array([chunk.start for _, _, chunk in rows], dtype=np.int64)
        slots = np.array([chunk.slot for _, _, chunk in rows], dtype=np.int64)
        counts = np.array([chunk.num_tokens for _, _, chunk in rows], dtype=np.int64)
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        num_tokens = int(offsets[-1])
        positions = np.repeat(starts - offsets[:-1], counts) + np.arange(num_tokens)
        input_ids, fed = _chunk_tokens(rows, offsets, num_tokens)
        num_prompt = np.array([sequence.num_prompt_tokens for _, sequence, _ in rows], dtype=np.int64)
        return self._batch(
            rows,
            layout=(starts, slots, starts + counts, offsets, num_prompt),
            tokens=(input_ids, positions, np.repeat(slots, counts)),
            last_tokens=torch.from_numpy(offsets[1:] - 1),
            fed=([int(offsets[place + 1]) - 1 for place in fed], [rows[place][2].slot for place in fed]),
            samples=self._samples(rows),
        )

    def _batch(
        self,
        rows: list[Row],
        layout: tuple[IntArray, IntArray, IntArray, IntArray, IntArray],
        tokens: tuple[IntArray, IntArray, IntArray],
        last_tokens: torch.Tensor,
        fed: tuple[list[int], list[int]],
        samples: BoolArray,
    ) -> PackedBatch:
        starts, slots, lengths, offsets, num_prompt = layout
        input_ids, positions, token_slots = tokens
        blocks = positions // self._block_size
        shift = self._block_tables[token_slots, blocks] - blocks  # from a position to its place in the cache
        write_index = positions + shift * self._block_size
        return PackedBatch(
            rows=rows,
            input_ids=torch.from_numpy(input_ids[None]),
            position_ids=torch.from_numpy(positions[None]),
            last_tokens=last_tokens,
            attention=AttentionBatch(
                num_decode_rows=_num_decodes(rows),
                slots=slots,
                starts=starts,
                lengths=lengths,
                offsets=offsets,
                block_tables=self._block_tables,
                write_index=torch.from_numpy(write_index),
            ),
            sampling=SampleRows(slots, lengths - num_prompt, samples),
            fed_positions=fed[0],
            fed_slots=fed[1],
        )

    def _samples(self, rows: list[Row]) -> BoolArray:
        samples = [chunk.samples for _, _, chunk in rows]
        return self._all_true[: len(rows)] if all(samples) else np.array(samples)


def _packing_order(row: Row) -> tuple[bool, int]:
    chunk = row[2]
    return chunk.num_tokens > 1, chunk.start


def _num_decodes(rows: list[Row]) -> int:
    if rows[-1][2].num_tokens == 1:
        return len(rows)
    return sum(chunk.num_tokens == 1 for _, _, chunk in rows)


def _single_tokens(rows: list[Row]) -> tuple[list[int], list[int]]:
    """Each row's one token, and the places of those that are still on the device (0 here)."""
    tokens: list[int] = []
    fed: list[int] = []
    for place, (_, sequence, chunk) in enumerate(rows):
        if chunk.start < len(sequence.tokens):
            tokens.append(sequence.tokens[chunk.start])
        else:
            tokens.append(0)
            fed.append(place)
    return tokens, fed


def _chunk_tokens(rows: list[Row], offsets: IntArray, num_tokens: int) -> tuple[IntArray, list[int]]:
    """All packed tokens, and the rows whose last one is still on the device (0 here)."""
    input_ids = np.zeros(num_tokens, dtype=np.int64)
    fed: list[int] = []
    for place, (_, sequence, chunk) in enumerate(rows):
        begin, end = int(offsets[place]), chunk.start + chunk.num_tokens
        known = sequence.tokens[chunk.start : end]
        input_ids[begin : begin + len(known)] = known
        if len(known) < chunk.num_tokens:
            fed.append(place)
    return input_ids, fed
