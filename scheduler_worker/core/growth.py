"""How many blocks running sequences will hold at most, if their answers become as long as expected.

Reserving every sequence's whole growth at once wastes what those that end early give back. Sequences grow together,
one token a step, so the peak is reached just before one of them ends.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from scheduler_worker.core.sequence import Sequence

Rest = tuple[int, int]


class Growth:
    """Rows by the tokens that they have yet to make, the longest rest first."""

    def __init__(self, block_size: int, rows: Iterable[Rest] = ()) -> None:
        self._block_size = block_size
        self._rows = sorted((-rest, num_tokens) for rest, num_tokens in rows)

    def add(self, rest: int, num_tokens: int) -> None:
        """A row of `num_tokens` tokens with `rest` more to come."""
        insort(self._rows, (-rest, num_tokens))

    def peak_with(self, rest: int, num_tokens: int) -> float:
        """Blocks at the fullest moment, if such a row joined.

        Just before the k-th row from the front ends, k rows are left, and each has grown by that row's rest. Each may
        have begun its last block with its last token.
        """
        rows = list(self._rows)
        insort(rows, (-rest, num_tokens))
        peak = held = 0
        for count, (negative_rest, tokens) in enumerate(rows, start=1):
            held += tokens
            peak = max(peak, held - count * negative_rest + count * (self._block_size - 1))
        return peak / self._block_size


def rest_of(sequence: Sequence, expected: int, num_sampled: int, share: float, block_size: int) -> int:
    """Tokens that the sequence is expected to make yet; one that outgrew the expectation makes another block's."""
    left = expected - num_sampled
    if left <= 0:
        left = min(block_size, sequence.max_tokens - num_sampled)
    return int(max(left, 0) * share)
