"""A step's chunks: the decoding rows by columns, then the others one by one.

The columns are shared by all plans that are made while the same rows decode, so that a plan costs what it starts, not
what runs. Who iterates gets `Chunk`s, made at the first look; who computes by columns pays for no object per row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, compress, repeat
from typing import Final, NamedTuple, overload

from scheduler_worker.core.plan import Chunk, RowResult, StepPlan

Blocks = tuple[int, ...]
NO_BLOCKS: Final[Blocks] = ()


class DecodeRows(NamedTuple):
    """Rows that get one token a step, by columns. In step `s` a row computes position `offset + s`.

    `expected` is what each row comes to if it yields its token and goes on.
    """

    seq_ids: tuple[str, ...]
    slots: Sequence[int]
    offsets: Sequence[int]
    expected: tuple[RowResult, ...]

    def without(self, places: Iterable[int]) -> DecodeRows:
        """The rows but for those at these places."""
        kept = bytearray(b"\1") * len(self.seq_ids)
        for place in places:
            kept[place] = 0
        return DecodeRows._make([tuple(compress(column, kept)) for column in self])


class Emitted(Sequence[tuple[str, int]]):
    """A token for each decoding row, then what others emitted: equal to the tuple of its pairs, and printed as such."""

    __slots__ = ("_others", "_seq_ids")

    def __init__(self, seq_ids: tuple[str, ...], others: tuple[tuple[str, int], ...] = ()) -> None:
        self._seq_ids = seq_ids
        self._others = others

    def __len__(self) -> int:
        return len(self._seq_ids) + len(self._others)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, int], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, int] | tuple[tuple[str, int], ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return chain(zip(self._seq_ids, repeat(1), strict=False), self._others)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, Emitted) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class StepChunks(Sequence[Chunk]):
    """Equal to the tuple of its chunks, and printed as such.

    `growth` has the blocks that decoding rows get in this step, by their place; `others` are the explicit chunks.
    """

    __slots__ = ("_whole", "decodes", "growth", "others", "step")

    def __init__(
        self,
        step: int,
        decodes: DecodeRows,
        growth: Mapping[int, Blocks],
        others: tuple[Chunk, ...],
    ) -> None:
        self.step = step
        self.decodes = decodes
        self.growth = growth
        self.others = others
        self._whole: tuple[Chunk, ...] | None = None

    @classmethod
    def of(cls, plan: StepPlan) -> StepChunks:
        """The plan's chunks by columns, also of a plan that was written out and read again."""
        if isinstance(plan.chunks, cls):
            return plan.chunks
        rows = plan.chunks[: plan.num_lockstep]
        decodes = DecodeRows(
            tuple([row.seq_id for row in rows]),
            tuple([row.slot for row in rows]),
            tuple([row.start - plan.step for row in rows]),
            tuple([RowResult(row.seq_id, 1) for row in rows]),
        )
        growth = {place: row.new_blocks for place, row in enumerate(rows) if row.new_blocks}
        return cls(plan.step, decodes, growth, tuple(plan.chunks[plan.num_lockstep :]))

    def whole(self) -> tuple[Chunk, ...]:
        """All chunks as a tuple; made once."""
        if self._whole is None:
            self._whole = (*self._decode_chunks(), *self.others)
        return self._whole

    def _decode_chunks(self) -> list[Chunk]:
        """Zipped, because this runs for every row."""
        seq_ids, slots, offsets, _ = self.decodes
        starts = [offset + self.step for offset in offsets]
        columns = zip(
            seq_ids, slots, starts, repeat(1), repeat(True), repeat(False), repeat(NO_BLOCKS), strict=False
        )
        chunks: list[Chunk] = list(map(tuple.__new__, repeat(Chunk), columns))
        for place in self.growth:
            chunks[place] = self._decode_chunk(place)
        return chunks

    def at(self, place: int) -> Chunk:
        """The chunk at a place from 0 on, without making the others."""
        num_decodes = len(self.decodes.seq_ids)
        return self._decode_chunk(place) if place < num_decodes else self.others[place - num_decodes]

    def _decode_chunk(self, place: int) -> Chunk:
        seq_ids, slots, offsets, _ = self.decodes
        start = offsets[place] + self.step
        return Chunk(seq_ids[place], slots[place], start, 1, True, False, self.growth.get(place, NO_BLOCKS))

    def __len__(self) -> int:
        return len(self.decodes.seq_ids) + len(self.others)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Chunk, ...]: ...
    def __getitem__(self, index: int | slice) -> Chunk | tuple[Chunk, ...]:
        return self.whole()[index]

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.whole())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StepChunks):
            return self.whole() == other.whole()
        return self.whole() == other

    def __hash__(self) -> int:
        return hash(self.whole())

    def __repr__(self) -> str:
        return repr(self.whole())
