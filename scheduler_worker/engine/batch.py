"""Packing: a step's rows as one line of tokens, with everything the forward pass needs beside it."""

from __future__ import annotations

from dataclasses import dataclass
from operator import gt

import numpy as np
import torch

from scheduler_worker.engine.attention.base import AttentionBatch, IntArray, TableArray, to_device
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
        input_ids, rows_fed = _single_tokens(rows)
        fed = np.array(rows_fed, dtype=np.int64)
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
        input_ids = np.zeros(num_tokens, dtype=np.int64)
        single = rows.num_single
        input_ids[:single], rows_fed = _single_tokens(rows)
        for row in range(single, num_rows):
            begin, start = int(offsets[row]), int(rows.starts[row])
            known = rows.sequences[row].tokens[start : start + int(counts[row])]
            input_ids[begin : begin + len(known)] = known
            if len(known) < counts[row]:
                rows_fed.append(row)
        fed, last_tokens = np.array(rows_fed, dtype=np.int64), offsets[1:] - 1
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


def _single_tokens(rows: StepRows) -> tuple[IntArray, list[int]]:
    """The token of each row that has one, and the rows whose token only the device knows (0 here).

    Without numpy: a few rows are the usual case on a CPU, and there each of its operations costs more than a row.
    """
    count = rows.num_single
    sequences = rows.sequences if count == len(rows) else rows.sequences[:count]
    starts = rows.starts[:count].tolist()
    num_known = [len(one.tokens) for one in sequences]
    if all(map(gt, num_known, starts)):
        known = [one.tokens[start] for one, start in zip(sequences, starts, strict=True)]
        return np.array(known, dtype=np.int64), []
    fed = [row for row, (start, num) in enumerate(zip(starts, num_known, strict=True)) if start >= num]
    input_ids = np.zeros(count, dtype=np.int64)
    if len(fed) < count:
        for row in sorted(set(range(count)).difference(fed)):
            input_ids[row] = sequences[row].tokens[starts[row]]
    return input_ids, fed
