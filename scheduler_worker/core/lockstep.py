"""Sequences that decode: one token each in every step, so that a step costs what changes, not what runs.

A row's position, its next block and its last step are functions of the step number. `wheel` knows in which steps
(modulo the block size) a row needs a block, `endings` in which step it books its last token. A row that misses a step
leaves, and comes back through the ordinary path of those that catch up.
"""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Set
from typing import Any

from scheduler_worker.core.chunks import Blocks, DecodeRows
from scheduler_worker.core.plan import RowResult
from scheduler_worker.core.sequence import Sequence


class Lockstep:
    """The decoding rows. `step` is the last booked step, `applied` the last whose result is known.

    `classes` are those that have rows: the same value until one gets its first or loses its last. What every step
    asks of rows stands in columns, in the order of their `place`: rows themselves lie far apart in memory. `_due_at` is
    the step in which a row lacks a block, `_num_kept` how many more are promised to it than it holds.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._wheel: list[dict[str, int]] = [{} for _ in range(block_size)]
        self._endings: dict[int, dict[str, Sequence]] = {}
        self._num_by_class: dict[str, int] = {}
        self._sum_offsets = 0
        self._line: list[Sequence] = []
        self._columns: tuple[Any, ...] = ([], array("q"), array("q"), [])
        self._due_at, self._num_kept = array("q"), array("q")
        self._all_columns: tuple[Any, ...] = (self._line, self._due_at, self._num_kept, *self._columns)
        self._frozen: DecodeRows | None = None
        self.classes: tuple[str, ...] = ()
        self.rows: dict[str, Sequence] = {}
        self.step = 0
        self.applied = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, sequence: Sequence) -> bool:
        return self.rows.get(sequence.seq_id) is sequence

    def join(self, sequence: Sequence) -> None:
        """From the next step on the row decodes; its last booked token is in the current step."""
        sequence.join_step = self.step
        sequence.offset = sequence.num_prompt_tokens + sequence.num_sampled - 2 - self.step
        self.rows[sequence.seq_id] = sequence
        self._enter_line(sequence)
        self._sum_offsets += sequence.offset
        self._bucket(sequence)[sequence.seq_id] = sequence.place
        self._endings.setdefault(self._last_step(sequence), {})[sequence.seq_id] = sequence
        self._count_in(sequence.class_id, 1)

    def leave(self, sequence: Sequence, *, ends: bool = False) -> None:
        """Back to explicit counts, as of the last booked step. Of one that ends, nobody asks what is pending."""
        pending, step = [] if ends else self._pending(sequence), self.step
        self._forget(sequence)
        sequence.num_sampled += step - sequence.join_step
        sequence.num_computed = sequence.num_prompt_tokens + sequence.num_sampled - 1
        if sequence.last_step < step:
            sequence.last_step = step
        sequence.pending = pending

    def _enter_line(self, sequence: Sequence) -> None:
        self._frozen = None
        seq_id = sequence.seq_id
        sequence.place = len(self._line)
        self._line.append(sequence)
        seq_ids, slots, offsets, expected = self._columns
        seq_ids.append(seq_id)
        slots.append(sequence.slot)
        offsets.append(sequence.offset)
        expected.append(RowResult(seq_id, 1))
        num_held = len(sequence.blocks)
        self._due_at.append(num_held * self._block_size - sequence.offset)
        self._num_kept.append(sequence.promised_blocks - num_held)

    def _leave_line(self, sequence: Sequence) -> None:
        """The last in line takes the empty place, so that leaving costs the same for everybody."""
        self._frozen = None
        place, last = sequence.place, self._line[-1]
        del self._wheel[-sequence.offset % self._block_size][sequence.seq_id]
        if last is sequence:
            for column in self._all_columns:
                column.pop()
            return
        self._wheel[-last.offset % self._block_size][last.seq_id] = last.place = place
        for column in self._all_columns:
            column[place] = column.pop()

    def _bucket(self, sequence: Sequence) -> dict[str, int]:
        """Rows that begin a block in the same steps, and their places."""
        return self._wheel[-sequence.offset % self._block_size]

    def grow(self, rows: list[tuple[Sequence, Blocks]]) -> None:
        """These rows hold blocks more."""
        due_at, num_kept, size = self._due_at, self._num_kept, self._block_size
        for row, blocks in rows:
            place, num_blocks = row.place, len(blocks)
            due_at[place] += num_blocks * size
            num_kept[place] -= num_blocks

    def row_at(self, place: int) -> Sequence:
        """The row that stands there."""
        return self._line[place]

    def decode_rows(self, absent: Set[str]) -> DecodeRows:
        """The rows but for those `absent`, by columns: the same value until a row joins or leaves."""
        if self._frozen is None:
            seq_ids, slots, offsets, expected = self._columns
            self._frozen = DecodeRows(tuple(seq_ids), slots[:], offsets[:], tuple(expected))
        places = self._places(absent) if absent else None
        return self._frozen.without(places) if places else self._frozen

    def by_place(self, grown: list[int], blocks: Blocks, absent: Set[str]) -> dict[int, Blocks]:
        """A block for each row that has grown, by its place among the rows but for those `absent`."""
        if not absent or not (places := self._places(absent)):
            return dict(zip(grown, zip(blocks), strict=True))
        left = [(place, block) for place, block in zip(grown, blocks, strict=True) if place not in places]
        return {place - bisect(places, place): (block,) for place, block in left}

    def _places(self, seq_ids: Set[str]) -> list[int]:
        """Where those of the rows stand, in order."""
        return sorted([self.rows[one].place for one in seq_ids if one in self.rows])

    def change_class(self, sequence: Sequence, class_id: str) -> None:
        """The sequence, in lockstep or not, belongs to another class from now on."""
        if sequence in self:
            self._count_in(sequence.class_id, -1)
            self._count_in(class_id, 1)
        sequence.class_id = class_id

    def _count_in(self, class_id: str, change: int) -> None:
        num_rows = self._num_by_class[class_id] = self._num_by_class.get(class_id, 0) + change
        if num_rows == max(change, 0):
            self.classes = tuple([one for one, num_rows in self._num_by_class.items() if num_rows])

    def _pending(self, sequence: Sequence) -> list[int]:
        earlier = [step for step in sequence.pending if self.applied < step < sequence.join_step]
        return [*earlier, *range(max(self.applied + 1, sequence.join_step), self.step + 1)]

    def _forget(self, sequence: Sequence) -> None:
        seq_id = sequence.seq_id
        del self.rows[seq_id]
        self._leave_line(sequence)
        self._sum_offsets -= sequence.offset
        self._count_in(sequence.class_id, -1)
        last_step = self._last_step(sequence)
        ending = self._endings[last_step]
        del ending[seq_id]
        if not ending:
            del self._endings[last_step]

    def _last_step(self, sequence: Sequence) -> int:
        return sequence.join_step + sequence.max_tokens - sequence.num_sampled

    def due_places(self, step: int) -> list[int]:
        """Where rows stand whose token in this step begins a block that they do not have yet."""
        due_at = self._due_at
        return [place for place in self._wheel[step % self._block_size].values() if due_at[place] <= step]

    def num_with_promise(self, places: list[int]) -> int:
        """How many of the rows there have been promised more blocks than they hold."""
        num_kept = self._num_kept
        return sum([num_kept[place] > 0 for place in places])

    def buckets(self) -> list[dict[str, int]]:
        """Places of rows by the step, modulo the block size, in which they begin a block."""
        return self._wheel

    def endings(self) -> dict[int, dict[str, Sequence]]:
        """Rows by the step in which they book their last token."""
        return self._endings

    def ending(self, step: int) -> list[Sequence]:
        """Rows that book their last token in this step."""
        return list(self._endings.get(step, {}).values())

    def num_ending_by(self, step: int) -> int:
        """How many rows book their last token up to this step (two steps ahead at most)."""
        return sum(len(self._endings.get(ahead, ())) for ahead in range(self.step + 1, step + 1))

    def num_kv_tokens(self, step: int) -> int:
        """Context tokens that the rows read in this step."""
        return self._sum_offsets + (step + 1) * len(self.rows)

    def num_computed(self, sequence: Sequence) -> int:
        """Booked positions, in lockstep or not."""
        if sequence in self:
            return sequence.offset + self.step + 1
        return sequence.num_computed

    def num_sampled(self, sequence: Sequence) -> int:
        """Booked output tokens, in lockstep or not."""
        if sequence in self:
            return sequence.num_sampled + self.step - sequence.join_step
        return sequence.num_sampled

    def num_generated(self, sequence: Sequence) -> int:
        """Output tokens that are known: booked less those in flight."""
        applied, num_generated = self.applied, sequence.num_sampled
        if self.rows.get(sequence.seq_id) is not sequence:
            return num_generated - len([step for step in sequence.pending if step > applied])
        joined = sequence.join_step
        if applied >= joined:
            return num_generated + applied - joined
        return num_generated - 1 - len([step for step in sequence.pending if applied < step < joined])

    def is_outstanding(self, sequence: Sequence) -> bool:
        """Whether a step in flight names the sequence."""
        last_step = self.step if sequence in self else sequence.last_step
        return last_step > self.applied
