"""Which sequence sits in which slot, and the block table of each slot, in one array updated in place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduler_worker.engine.attention.base import TableArray
from scheduler_worker.engine.sequences import EngineSequence


@dataclass(frozen=True, slots=True)
class _Before:
    """A sequence's place before a step changed it: `blocks` is the list it had, of this length."""

    sequence: EngineSequence
    slot: int | None
    blocks: list[int]
    num_blocks: int


class BlockTables:
    """`table` `[slots, blocks per sequence]`, padded with the null block; `holders` has the sequence in each slot.

    Every change since `start_step` can be undone, for a step that found no memory. The core frees a slot
    only by giving it to another sequence, so placing one sequence vacates whoever held the slot.
    """

    def __init__(self, num_slots: int, num_columns: int, null_block: int) -> None:
        self.table: TableArray = np.full((num_slots, num_columns), null_block, dtype=np.int32)
        self._null_block = null_block
        self.holders: list[EngineSequence | None] = [None] * num_slots
        self._journal: list[_Before] = []

    def start_step(self) -> None:
        """Forget how to undo the previous step."""
        self._journal.clear()

    def place(self, sequence: EngineSequence, slot: int, blocks: tuple[int, ...]) -> None:
        """Put a sequence into a slot with these blocks as its whole table."""
        holder = self.holders[slot]
        if holder is not None and holder is not sequence:
            self.vacate(holder)
        self._remember(sequence)
        self._leave_slot(sequence)
        sequence.slot = slot
        sequence.blocks = list(blocks)
        self.holders[slot] = sequence
        self._write(slot, sequence.blocks)

    def append(self, sequence: EngineSequence, blocks: tuple[int, ...]) -> None:
        """Add blocks to the end of a placed sequence's table."""
        self._remember(sequence)
        begin = len(sequence.blocks)
        self.table[sequence.slot, begin : begin + len(blocks)] = blocks
        sequence.blocks.extend(blocks)

    def vacate(self, sequence: EngineSequence) -> None:
        """Take slot and blocks from a sequence; harmless if it has none."""
        if sequence.slot is None and not sequence.blocks:
            return
        self._remember(sequence)
        self._leave_slot(sequence)
        sequence.blocks = []

    def undo_step(self) -> list[EngineSequence]:
        """Restore everything since `start_step`; returns the sequences that were moved."""
        touched = {id(before.sequence): before.sequence for before in self._journal}
        for before in reversed(self._journal):
            before.sequence.slot = before.slot
            before.sequence.blocks = before.blocks
            del before.blocks[before.num_blocks :]
        self._journal.clear()
        for slot, holder in enumerate(self.holders):
            if holder is not None and id(holder) in touched:
                self.holders[slot] = None
        for sequence in touched.values():
            if sequence.slot is not None:
                self.holders[sequence.slot] = sequence
                self._write(sequence.slot, sequence.blocks)
        return list(touched.values())

    def _remember(self, sequence: EngineSequence) -> None:
        blocks = sequence.blocks
        self._journal.append(_Before(sequence, sequence.slot, blocks, len(blocks)))

    def _leave_slot(self, sequence: EngineSequence) -> None:
        if sequence.slot is not None and self.holders[sequence.slot] is sequence:
            self.holders[sequence.slot] = None
        sequence.slot = None

    def _write(self, slot: int, blocks: list[int]) -> None:
        row = self.table[slot]
        row[: len(blocks)] = blocks
        row[len(blocks) :] = self._null_block
