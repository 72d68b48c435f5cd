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
    ready: ModelInputs | None = None

    def inputs(self, device: torch.device) -> ModelInputs:
        """Everything that the forward pass reads, where it runs."""
        if self.ready is not None:
            return self.ready
        self.attention.write_index = to_device(self.attention.write_index, device)
        return ModelInputs(
            to_device(self.input_ids[None], device),
            to_device(self.positions[None], device),
            to_device(self.last_tokens, device),
        )


class _Steady:
    """Rows of one token on the host, from one step to the next.

    Whatever a step needs of a row but its token is its position plus something that stays the same until the row begins
    a block: one batch serves all these steps, moved on in place by one operation. What changes with a block is looked
    up for the rows that begin one: each does so once in as many steps as a block has tokens.
    """

    def __init__(self, rows: StepRows, block_tables: TableArray, block_size: int, numbers: IntArray) -> None:
        num_rows, slots = len(rows), rows.slots
        self._block_size = block_size
        self._tokens = [one.tokens for one in rows.sequences]
        self._apart = np.zeros((4, num_rows), dtype=np.int64)
        self._apart[1] = 1
        self._apart[2] = 1 - rows.num_prompt
        self._figures = np.empty_like(self._apart)
        positions, lengths, indices, write_index = self._figures
        self._input_ids = np.empty(num_rows, dtype=np.int64)
        self._attention = AttentionBatch(
            num_decode_rows=num_rows,
            slots=slots,
            starts=positions,
            lengths=lengths,
            offsets=numbers[: num_rows + 1],
            block_tables=block_tables,
            write_index=torch.from_numpy(write_index),
        )
        self._batch = PackedBatch(
            input_ids=self._input_ids,
            positions=positions,
            last_tokens=numbers[:num_rows],
            attention=self._attention,
            sampling=SampleRows(slots, indices, rows.samples),
            fed_positions=numbers[:0],
            fed_slots=slots[:0],
        )
        self._batch.ready = self._batch.inputs(torch.device("cpu"))
        starts = rows.starts.tolist()
        self._first = self._next = starts[0]
        self._beginning: list[list[int]] = [[] for _ in range(block_size)]
        for row, start in enumerate(starts):
            self._beginning[-start % block_size].append(row)
            self._find_block(row, start)

    def _find_block(self, row: int, start: int) -> None:
        number, within = divmod(start, self._block_size)
        block = int(self._attention.block_tables[self._attention.slots[row], number])
        self._apart[3, row] = block * self._block_size + within - start

    def batch(self, rows: StepRows) -> PackedBatch | None:
        """The batch of these rows, whose tokens are all known; None if they are not the next step of those before."""
        attention, starts = self._attention, rows.starts.tolist()
        if rows.slots is not attention.slots or starts[0] != self._next:
            return None
        self._input_ids[:] = [one[start] for one, start in zip(self._tokens, starts, strict=True)]
        attention.begun = self._beginning[(self._next - self._first) % self._block_size]
        for row in attention.begun:
            self._find_block(row, starts[row])
        np.add(self._apart, rows.starts, out=self._figures)
        self._next += 1
        return self._batch


class Packer:
    """Lays out rows for the model, their attention and their sampling."""

    def __init__(self, block_tables: TableArray, block_size: int, in_place: bool = False) -> None:
        self._block_tables = block_tables
        self._block_size = block_size
        self._in_place = in_place
        self._steady: _Steady | None = None
        self._last_slots: IntArray | None = None
        self._numbers = np.arange(block_tables.shape[0] + 1, dtype=np.int64)

    def pack(self, rows: StepRows) -> PackedBatch:
        """The rows' tokens as one line. `in_place`: a batch may be moved on in place when the next is packed."""
        if rows.num_single < len(rows):
            self._steady = self._last_slots = None
            return self._pack_mixed(rows)
        if self._in_place and (batch := self._pack_steady(rows)) is not None:
            return batch
        return self._pack_single(rows)

    def _pack_steady(self, rows: StepRows) -> PackedBatch | None:
        """From their second step on: rows that leave or are joined at once are not worth it."""
        if self._steady is not None and (batch := self._steady.batch(rows)) is not None:
            batch.attention.is_next = True
            return batch
        self._steady, is_again = None, rows.slots is self._last_slots
        self._last_slots = rows.slots
        if not is_again:
            return None
        self._steady = _Steady(rows, self._block_tables, self._block_size, self._numbers)
        return self._steady.batch(rows)

    def _pack_single(self, rows: StepRows) -> PackedBatch:
        num_rows = len(rows)
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
