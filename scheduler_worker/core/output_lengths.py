"""How long answers turn out to be, by class: what growth and admission reckon with before the end is known."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

PRIOR_TOKENS: Final = 256
NUM_KEPT: Final = 512
NUM_NEEDED: Final = 16


class OutputLengths:
    """The last lengths of finished answers; `expected` is their p90, capped by what was asked for."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def observe(self, num_tokens: int) -> None:
        """An answer ended at this length by itself or by its limit."""
        if len(self._recent) == NUM_KEPT:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        self._recent.append(num_tokens)
        insort(self._sorted, num_tokens)

    @property
    def p90(self) -> int:
        """The nearest-rank p90; a prior until enough answers have ended."""
        if len(self._sorted) < NUM_NEEDED:
            return PRIOR_TOKENS
        return self._sorted[-(-len(self._sorted) * 9 // 10) - 1]

    def expected(self, max_tokens: int) -> int:
        """The length to reckon with for a request that allows `max_tokens`."""
        return min(max_tokens, self.p90)
