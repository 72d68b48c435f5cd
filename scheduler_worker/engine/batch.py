"""Packing: a step's rows as one line of tokens, with everything the forward pass needs beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scheduler_worker.engine.attention.base import AttentionBatch, BoolArray, IntArray, TableArray, to_device
from scheduler_worker.engine.rows import StepRows
from scheduler_worker.engine.sampling import SampleRows


@dataclass(slots=True)
class ModelInputs:
    """What the model reads: `input_ids` and `position_ids` `[1, T]`, `last_tokens` `[rows]`."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    last_tokens: torch.Tensor


@dataclass(slots=True)
class PackedBatch:
    """`input_ids` and `positions` `[T]`, and where each row's last token is, `last_tokens` `[rows]`; on the host.
    Tokens that only the device knows so far, at `fed_positions` of the packed input, come from the sampled tokens of
    `fed_slots`."""

    input_ids: IntArray
    positions: IntArray
    last_tokens: IntArray
    attention: AttentionBatch
    sampling: SampleRows
    fed_positions: IntArray
    fed_slots: IntArray

    def inputs(self, device: torch.device) -> ModelInputs:
        """Everything that the forward pass reads, where it runs."""
        self.attention.write_index = to_device(self.attention.write_index, device)
        return ModelInputs(
            to_device(self.input_ids[None], device),
            to_device(self.positions[None], device),
            to_device(self.last_tokens, device),
        )


class Packer:
    """Lays out rows for the model, their attention and their sampling."""

    def __init__(self, block_tables: TableArray, block_size: int) -> None:
        self._block_tables = block_tables
        self._block_size = block_size
        self._numbers = np.arange(block_tables.shape[0] + 1, dtype=np.int64)

    def pack(self, rows: StepRows) -> PackedBatch:
        """The rows' tokens as one line."""
        num_rows = len(rows)
        if rows.num_single < num_rows:
            return self._pack_mixed(rows)
        input_ids, is_fed = _single_tokens(rows)
        fed = is_fed.nonzero()[0]
        return self._batch(
            rows,
            offsets=self._numbers[: num_rows + 1],
            tokens=(input_ids, rows.starts, rows.slots),
            last_tokens=self._numbers[:num_rows],
            fed=(fed, rows.slots[fed]),
        )

    def _pack_mixed(self, rows: StepRows) -> PackedBatch:
        num_rows, counts = len(rows), rows.counts
        offsets = np.zeros(num_rows + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        num_tokens = int(offsets[-1])
        positions = np.repeat(rows.starts - offsets[:-1], counts) + np.arange(num_tokens)
        input_ids, is_fed = np.zeros(num_tokens, dtype=np.int64), np.zeros(num_rows, dtype=bool)
        single = rows.num_single
        input_ids[:single], is_fed[:single] = _single_tokens(rows)
        for row in range(single, num_rows):
            begin, start = int(offsets[row]), int(rows.starts[row])
            known = rows.sequences[row].tokens[start : start + int(counts[row])]
            input_ids[begin : begin + len(known)] = known
            is_fed[row] = len(known) < counts[row]
        fed, last_tokens = is_fed.nonzero()[0], offsets[1:] - 1
        return self._batch(
            rows,
            offsets=offsets,
            tokens=(input_ids, positions, np.repeat(rows.slots, counts)),
            last_tokens=last_tokens,
            fed=(last_tokens[fed], rows.slots[fed]),
        )

    def _batch(
        self,
        rows: StepRows,
        offsets: IntArray,
        tokens: tuple[IntArray, IntArray, IntArray],
        last_tokens: IntArray,
        fed: tuple[IntArray, IntArray],
    ) -> PackedBatch:
        lengths = rows.starts + rows.counts
        input_ids, positions, token_slots = tokens
        blocks = positions // self._block_size
        shift = self._block_tables[token_slots, blocks] - blocks  # from a position to its place in the cache
        write_index = positions + shift * self._block_size
        return PackedBatch(
            input_ids=input_ids,
            positions=positions,
            last_tokens=last_tokens,
            attention=AttentionBatch(
                num_decode_rows=rows.num_single,
                slots=rows.slots,
                starts=rows.starts,
                lengths=lengths,
                offsets=offsets,
                block_tables=self._block_tables,
                write_index=torch.from_numpy(write_index),
            ),
            sampling=SampleRows(rows.slots, lengths - rows.num_prompt, rows.samples),
            fed_positions=fed[0],
            fed_slots=fed[1],
        )


def _single_tokens(rows: StepRows) -> tuple[IntArray, BoolArray]:
    """The token of each row that has one, and which of them only the device knows (0 here)."""
    starts = rows.starts[: rows.num_single]
    sequences = rows.sequences if rows.num_single == len(rows) else rows.sequences[: rows.num_single]
    is_fed: BoolArray = starts >= np.array([len(one.tokens) for one in sequences])
    if not is_fed.any():
        known = [one.tokens[start] for one, start in zip(sequences, starts.tolist(), strict=True)]
        return np.array(known, dtype=np.int64), is_fed
    input_ids = np.zeros(len(starts), dtype=np.int64)
    for row in (~is_fed).nonzero()[0].tolist():
        input_ids[row] = sequences[row].tokens[starts[row]]
    return input_ids, is_fed
