"""Packing: the plan's chunks as one row of tokens, `[1, T]`, with everything the forward pass needs beside
it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scheduler_worker.core.plan import Chunk
from scheduler_worker.engine.attention.base import AttentionBatch, IntArray, TableArray
from scheduler_worker.engine.sampling import SampleRows
from scheduler_worker.engine.sequences import EngineSequence

Row = tuple[int, EngineSequence, Chunk]
"""A chunk that will be computed: its place in the plan, its sequence, itself."""


@dataclass(slots=True)
class PackedBatch:
    """`input_ids` and `position_ids` are `[1, T]` and `last_tokens` `[rows]`, on the device. Tokens that
    only the device knows so far, at `fed_positions` of the packed input, come from the sampled tokens of
    `fed_slots`."""

    rows: list[Row]
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    last_tokens: torch.Tensor
    attention: AttentionBatch
    sampling: SampleRows
    fed_positions: list[int]
    fed_slots: list[int]


def pack(rows: list[Row], block_tables: TableArray, block_size: int, device: torch.device) -> PackedBatch:
    """Lay out the rows: those of one token first, by context length, then longer chunks."""
    rows.sort(key=_packing_order)
    chunks = [chunk for _, _, chunk in rows]
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
    counts = np.array([chunk.num_tokens for chunk in chunks], dtype=np.int64)
    slots = np.array([chunk.slot for chunk in chunks], dtype=np.int64)
    lengths = starts + counts
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    num_tokens = int(offsets[-1])
    positions, token_slots = _positions(starts, counts, slots, offsets, num_tokens)
    input_ids, fed_positions, fed_slots = _input_ids(rows, offsets, num_tokens)
    blocks = block_tables[token_slots, positions // block_size].astype(np.int64)
    write_index = _to_device(blocks * block_size + positions % block_size, device)
    return PackedBatch(
        rows=rows,
        input_ids=_to_device(input_ids, device)[None],
        position_ids=_to_device(positions, device)[None],
        last_tokens=_to_device(offsets[1:] - 1, device),
        attention=AttentionBatch(
            num_decode_rows=int(np.count_nonzero(counts == 1)),
            slots=slots,
            starts=starts,
            lengths=lengths,
            offsets=offsets,
            block_tables=block_tables,
            write_index=write_index,
        ),
        sampling=SampleRows(
            slots=slots,
            indices=lengths - np.array([sequence.num_prompt_tokens for _, sequence, _ in rows]),
            samples=np.array([chunk.samples for chunk in chunks]),
        ),
        fed_positions=fed_positions,
        fed_slots=fed_slots,
    )


def _packing_order(row: Row) -> tuple[bool, int]:
    chunk = row[2]
    return chunk.num_tokens > 1, chunk.start


def _positions(
    starts: IntArray, counts: IntArray, slots: IntArray, offsets: IntArray, num_tokens: int
) -> tuple[IntArray, IntArray]:
    """Each packed token's position in its sequence, and its slot."""
    if num_tokens == len(starts):
        return starts, slots
    positions = np.repeat(starts - offsets[:-1], counts) + np.arange(num_tokens)
    return positions, np.repeat(slots, counts)


def _input_ids(rows: list[Row], offsets: IntArray, num_tokens: int) -> tuple[IntArray, list[int], list[int]]:
    """Packed token ids; a token that is still on the device is 0 here, with its place and slot."""
    input_ids = np.zeros(num_tokens, dtype=np.int64)
    fed_positions: list[int] = []
    fed_slots: list[int] = []
    first_tokens: list[int] = []
    for place, (_, sequence, chunk) in enumerate(rows):
        known, start, end = len(sequence.tokens), chunk.start, chunk.start + chunk.num_tokens
        first_tokens.append(sequence.tokens[start] if start < known else 0)
        if chunk.num_tokens > 1:
            begin = int(offsets[place])
            input_ids[begin : begin + min(known, end) - start] = sequence.tokens[start:end]
        if end > known:
            fed_positions.append(int(offsets[place + 1]) - 1)
            fed_slots.append(chunk.slot)
    input_ids[offsets[:-1]] = first_tokens
    return input_ids, fed_positions, fed_slots


def _to_device(values: IntArray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
