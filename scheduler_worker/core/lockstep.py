"""Sequences that decode: one token each in every step, so that a step costs what changes, not what runs.

A row's position, its next block and its last step are functions of the step number. `wheel` knows in which steps
(modulo the block size) a row needs a block, `endings` in which step it books its last token. A row that misses a step
leaves, and comes back through the ordinary path of those that catch up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import repeat
from typing import Any, Final

from scheduler_worker.core.plan import Chunk
from scheduler_worker.core.sequence import Sequence

NO_BLOCKS: Final[tuple[int, ...]] = ()


class Lockstep:
    """The decoding rows. `step` is the last booked step, `applied` the last whose result is known."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._wheel: list[dict[str, Sequence]] = [{} for _ in range(block_size)]
        self._endings: dict[int, dict[str, Sequence]] = {}
        self._num_by_class: dict[str, int] = {}
        self._sum_offsets = 0
        self._line: list[Sequence] = []
        self._index: dict[str, int] = {}
        self._ids: list[str] = []
        self._slots: list[int | None] = []
        self._offsets: list[int] = []
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
        self._wheel[-sequence.offset % self._block_size][sequence.seq_id] = sequence
        self._endings.setdefault(self._last_step(sequence), {})[sequence.seq_id] = sequence
        self._num_by_class[sequence.class_id] = self._num_by_class.get(sequence.class_id, 0) + 1

    def leave(self, sequence: Sequence) -> None:
        """Back to explicit counts, as of the last booked step."""
        pending = self._pending(sequence)
        self._forget(sequence)
        sequence.num_sampled += self.step - sequence.join_step
        sequence.num_computed = sequence.num_tokens - 1
        sequence.last_step = max(sequence.last_step, self.step)
        sequence.pending = pending

    def _enter_line(self, sequence: Sequence) -> None:
        self._index[sequence.seq_id] = len(self._line)
        self._line.append(sequence)
        self._ids.append(sequence.seq_id)
        self._slots.append(sequence.slot)
        self._offsets.append(sequence.offset)

    def _leave_line(self, seq_id: str) -> None:
        """The last in line takes the empty place, so that leaving costs the same for everybody."""
        index = self._index.pop(seq_id)
        last = self._line[-1]
        if last.seq_id != seq_id:
            self._index[last.seq_id] = index
        columns: tuple[list[Any], ...] = (self._line, self._ids, self._slots, self._offsets)
        for column in columns:
            column[index] = column[-1]
            column.pop()

    def chunks(self, step: int, growth: Mapping[str, tuple[int, ...]], absent: Set[str]) -> list[Chunk]:
        """Each row's token in this step, with the blocks that `growth` gives it; not for those `absent`.

        The columns are zipped because this runs for every row in every step.
        """
        positions = [offset + step for offset in self._offsets]
        columns = zip(
            self._ids, self._slots, positions, repeat(1), repeat(True), repeat(False), repeat(NO_BLOCKS), strict=False
        )
        chunks: list[Chunk] = list(map(tuple.__new__, repeat(Chunk), columns))
        for seq_id, blocks in growth.items():
            index = self._index[seq_id]
            chunks[index] = chunks[index]._replace(new_blocks=blocks)
        return [chunk for chunk in chunks if chunk.seq_id not in absent] if absent else chunks

    def change_class(self, sequence: Sequence, class_id: str) -> None:
        """The sequence, in lockstep or not, belongs to another class from now on."""
        if sequence in self:
            self._num_by_class[sequence.class_id] -= 1
            self._num_by_class[class_id] = self._num_by_class.get(class_id, 0) + 1
        sequence.class_id = class_id

    def _pending(self, sequence: Sequence) -> list[int]:
        earlier = [step for step in sequence.pending if self.applied < step < sequence.join_step]
        return [*earlier, *range(max(self.applied + 1, sequence.join_step), self.step + 1)]

    def _forget(self, sequence: Sequence) -> None:
        seq_id = sequence.seq_id
        del self.rows[seq_id]
        self._leave_line(seq_id)
        self._sum_offsets -= sequence.offset
        self._num_by_class[sequence.class_id] -= 1
        self._wheel[-sequence.offset % self._block_size].pop(seq_id)
        last_step = self._last_step(sequence)
        del self._endings[last_step][seq_id]
        if not self._endings[last_step]:
            del self._endings[last_step]

    def _last_step(self, sequence: Sequence) -> int:
        return sequence.join_step + sequence.max_tokens - sequence.num_sampled

    def due_blocks(self, step: int) -> list[Sequence]:
        """Rows whose token in this step begins a block that they do not have yet."""
        size = self._block_size
        return [
            row for row in self._wheel[step % size].values() if len(row.blocks) * size <= row.offset + step
        ]

    def buckets(self) -> list[dict[str, Sequence]]:
        """Rows by the step, modulo the block size, in which they begin a block."""
        return self._wheel

    def endings(self) -> dict[int, dict[str, Sequence]]:
        """Rows by the step in which they book their last token."""
        return self._endings

    def has_due(self, step: int) -> bool:
        """Whether `due_blocks` may name rows."""
        return bool(self._wheel[step % self._block_size])

    def ending(self, step: int) -> list[Sequence]:
        """Rows that book their last token in this step."""
        return list(self._endings.get(step, {}).values())

    def num_ending_by(self, step: int) -> int:
        """How many rows book their last token up to this step (two steps ahead at most)."""
        return sum(len(self._endings.get(ahead, ())) for ahead in range(self.step + 1, step + 1))

    def num_kv_tokens(self, step: int) -> int:
        """Context tokens that the rows read in this step."""
        return self._sum_offsets + (step + 1) * len(self.rows)

    def classes(self) -> Iterable[str]:
        """Classes that have rows."""
        return (class_id for class_id, num_rows in self._num_by_class.items() if num_rows)

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
        applied = self.applied
        if sequence not in self:
            return sequence.num_sampled - sum(1 for step in sequence.pending if step > applied)
        earlier = sum(1 for step in sequence.pending if applied < step < sequence.join_step)
        return sequence.num_sampled + max(applied - sequence.join_step, -1) - earlier

    def is_outstanding(self, sequence: Sequence) -> bool:
        """Whether a step in flight names the sequence."""
        last_step = self.step if sequence in self else sequence.last_step
        return last_step > self.applied
