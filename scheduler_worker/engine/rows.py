"""From a plan's chunks to the rows that a step computes, by columns.

Nearly all rows of a step decode, and nearly all of those decoded in the step before: an object for each, or a look at
each, would cost more than the step's other work together. What is true of decoding rows until one joins or leaves is
found once; chunks of prompts, of which there are few, are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from scheduler_worker.core.chunks import DecodeRows, StepChunks
from scheduler_worker.core.plan import Chunk
from scheduler_worker.engine.attention.base import BoolArray, IntArray
from scheduler_worker.engine.block_tables import BlockTables
from scheduler_worker.engine.sequences import EngineSequence

_UNKNOWN = "the engine does not know this sequence"

Row = tuple[int, EngineSequence, Chunk]
"""A chunk that will be computed: its place in the plan, its sequence, itself."""


@dataclass(slots=True)
class StepRows:
    """Rows in packing order: first `num_single` of one token, by context length, then longer chunks.

    Row `i` computes `counts[i]` tokens of `sequences[i]` from position `starts[i]` on; its chunk is at `places[i]` of
    the plan. `num_prompt` are the tokens of its prompt; `samples` says whether a new token comes of it, `all_sample`
    whether one comes of every row.
    """

    places: list[int]
    sequences: list[EngineSequence]
    slots: IntArray
    starts: IntArray
    counts: IntArray
    num_prompt: IntArray
    samples: BoolArray
    all_sample: bool
    num_single: int

    def __len__(self) -> int:
        return len(self.sequences)

    def expect_tokens(self) -> None:
        """The sequences' counts of tokens that are to come."""
        for sequence, samples in zip(self.sequences, self.samples.tolist(), strict=True):
            sequence.num_pending += samples

    def expect_no_tokens(self) -> None:
        """Takes `expect_tokens` back."""
        for sequence, samples in zip(self.sequences, self.samples.tolist(), strict=True):
            sequence.num_pending -= samples

    @classmethod
    def of(cls, rows: list[Row]) -> StepRows:
        """From chunks, in any order; `rows` is put in order."""
        rows.sort(key=_packing_order)
        slots, starts, counts, num_prompt = np.array(
            [
                (chunk.slot, chunk.start, chunk.num_tokens, sequence.num_prompt_tokens)
                for _, sequence, chunk in rows
            ],
            dtype=np.int64,
        ).T.copy()
        samples = [chunk.samples for _, _, chunk in rows]
        return cls(
            [place for place, _, _ in rows],
            [sequence for _, sequence, _ in rows],
            slots,
            starts,
            counts,
            num_prompt,
            np.array(samples),
            all(samples),
            sum(chunk.num_tokens == 1 for _, _, chunk in rows),
        )

    def after(self, first: StepRows) -> StepRows:
        """Both as one: `first`, all of one token, and these."""
        joined = StepRows(
            first.places + self.places,
            first.sequences + self.sequences,
            np.concatenate((first.slots, self.slots)),
            np.concatenate((first.starts, self.starts)),
            np.concatenate((first.counts, self.counts)),
            np.concatenate((first.num_prompt, self.num_prompt)),
            np.concatenate((first.samples, self.samples)),
            first.all_sample and self.all_sample,
            first.num_single + self.num_single,
        )
        return joined._in_order() if self.num_single else joined

    def _in_order(self) -> StepRows:
        """Rows of one token by context length."""
        order = np.arange(len(self))
        order[: self.num_single] = self.starts[: self.num_single].argsort(kind="stable")
        return self.taken(order)

    def taken(self, order: IntArray) -> StepRows:
        """The same rows in this order."""
        rows = order.tolist()
        return StepRows(
            [self.places[row] for row in rows],
            [self.sequences[row] for row in rows],
            self.slots[order],
            self.starts[order],
            self.counts[order],
            self.num_prompt[order],
            self.samples[order],
            self.all_sample,
            self.num_single,
        )


def _packing_order(row: Row) -> tuple[bool, int]:
    chunk = row[2]
    return chunk.num_tokens > 1, chunk.start


@dataclass(slots=True)
class _Decoding:
    """What does not change while plans share `source`: its rows, as they would start in a step of the number 0."""

    source: DecodeRows
    rows: StepRows

    @classmethod
    def of(cls, source: DecodeRows, holders: list[EngineSequence | None]) -> _Decoding | None:
        """None if a row is not what its slot holds, or cannot be computed."""
        sequences: list[EngineSequence] = []
        for slot, seq_id in zip(source.slots, source.seq_ids, strict=True):
            sequence = holders[slot]
            if sequence is None or sequence.seq_id != seq_id or sequence.error:
                return None
            sequences.append(sequence)
        num_rows = len(sequences)
        rows = StepRows(
            places=list(range(num_rows)),
            sequences=sequences,
            slots=np.array(source.slots, dtype=np.int64),
            starts=np.array(source.offsets, dtype=np.int64),
            counts=np.ones(num_rows, dtype=np.int64),
            num_prompt=np.array([one.num_prompt_tokens for one in sequences], dtype=np.int64),
            samples=np.ones(num_rows, dtype=bool),
            all_sample=True,
            num_single=num_rows,
        )
        return cls(source, rows.taken(rows.starts.argsort(kind="stable")))

    def in_step(self, step: int) -> StepRows:
        """The rows of the step of that number."""
        one = self.rows
        return StepRows(
            one.places,
            one.sequences,
            one.slots,
            one.starts + step,
            one.counts,
            one.num_prompt,
            one.samples,
            one.all_sample,
            one.num_single,
        )


class Stager:
    """Gives a plan's sequences their slots and blocks, and says which rows there are to compute.

    `occupy` puts a sequence into a slot with its whole block table.
    """

    def __init__(
        self,
        sequences: dict[str, EngineSequence],
        tables: BlockTables,
        block_size: int,
        occupy: Callable[[EngineSequence, int, tuple[int, ...]], None],
    ) -> None:
        self._sequences = sequences
        self._tables = tables
        self._block_size = block_size
        self._occupy = occupy
        self._decoding: _Decoding | None = None

    def forget(self) -> None:
        """What was known of decoding rows: a sequence is gone, or not what it was."""
        self._decoding = None

    def stage(self, step: int, chunks: StepChunks) -> tuple[StepRows | None, dict[int, str]]:
        """The step's rows, if there are any, and why chunks are none, by place in the plan."""
        decoding, failed = self._known_rows(step, chunks), dict[int, str]()
        if decoding is None:
            rows = self._rows(enumerate(chunks), failed)
            return (StepRows.of(rows) if rows else None), failed
        if not chunks.others:
            return decoding, failed
        rows = self._rows(enumerate(chunks.others, start=len(decoding)), failed)
        return (StepRows.of(rows).after(decoding) if rows else decoding), failed

    def _known_rows(self, step: int, chunks: StepChunks) -> StepRows | None:
        """The decoding rows, with the blocks that they get; None if they must be looked at one by one."""
        source, known = chunks.decodes, self._decoding
        if not source.seq_ids:
            return None
        is_new = known is None or known.source is not source
        if known is None or is_new:
            known = self._decoding = _Decoding.of(source, self._tables.holders)
            if known is None:
                return None
        rows = known.in_step(step)
        if is_new and not self._fit(rows, chunks):
            self._decoding = None
            return None
        for place, blocks in chunks.growth.items():
            self._tables.append(self._sequences[source.seq_ids[place]], blocks)
        return rows

    def _fit(self, rows: StepRows, chunks: StepChunks) -> bool:
        """Whether every row has the token to compute and, with what it gets, a block to put it in."""
        ends = rows.starts + 1
        grown = np.zeros(len(rows), dtype=np.int64)
        grown[list(chunks.growth)] = [len(blocks) for blocks in chunks.growth.values()]
        room = np.array([len(one.blocks) for one in rows.sequences]) + grown[rows.places]
        known = np.array([len(one.tokens) + one.num_pending for one in rows.sequences])
        return bool((ends <= known).all() and (ends <= room * self._block_size).all())

    def _rows(self, chunks: Iterable[tuple[int, Chunk]], failed: dict[int, str]) -> list[Row]:
        sequences, rows = self._sequences, list[Row]()
        for place, chunk in chunks:
            sequence = sequences.get(chunk.seq_id)
            error = _UNKNOWN if sequence is None else sequence.error or self._place(sequence, chunk)
            if error or sequence is None:
                failed[place] = error or _UNKNOWN
            else:
                rows.append((place, sequence, chunk))
        return rows

    def _place(self, sequence: EngineSequence, chunk: Chunk) -> str | None:
        """Give the chunk's sequence its slot and blocks; returns why that is impossible, or None."""
        end = chunk.start + chunk.num_tokens
        if end > len(sequence.tokens) + sequence.num_pending:
            return f"the plan asks for {end} tokens of {chunk.seq_id}, which has {len(sequence.tokens)}"
        if chunk.first:
            self._occupy(sequence, chunk.slot, chunk.new_blocks)
        elif sequence.slot != chunk.slot:
            return f"{chunk.seq_id} is planned in slot {chunk.slot}, but is in {sequence.slot}"
        elif chunk.new_blocks:
            self._tables.append(sequence, chunk.new_blocks)
        if end > len(sequence.blocks) * self._block_size:
            return f"{len(sequence.blocks)} blocks do not hold the {end} tokens of {chunk.seq_id}"
        return None
