"""How long answers turn out to be, by class: what growth and admission reckon with before the end is known."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

PRIOR_TOKENS: Final = 256
NUM_KEPT: Final = 512
NUM_NEEDED: Final = 16
MOSTLY: Final = 0.9


class OutputLengths:
    """The last lengths of finished answers; `expected` is their p90, capped by what was asked for.

    Where nearly all answers run to their limit, the limit itself is what to expect. `p90` is by nearest rank; a
    prior until enough answers have ended.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, bool]] = deque()
        self._sorted: list[int] = []
        self._num_at_limit = 0
        self._mostly_at_limit = False
        self._sum = 0
        self.p90 = PRIOR_TOKENS

    def observe(self, num_tokens: int, at_limit: bool = False) -> None:
        """An answer ended at this length; `at_limit` says that it was not allowed to be longer."""
        if len(self._recent) == NUM_KEPT:
            oldest, was_at_limit = self._recent.popleft()
            self._num_at_limit -= was_at_limit
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest
        self._recent.append((num_tokens, at_limit))
        self._num_at_limit += at_limit
        insort(self._sorted, num_tokens)
        self._sum += num_tokens
        num_known = len(self._sorted)
        if num_known >= NUM_NEEDED:
            self.p90 = self._sorted[-(-num_known * 9 // 10) - 1]
            self._mostly_at_limit = self._num_at_limit >= MOSTLY * num_known

    def expected(self, max_tokens: int) -> int:
        """The length to reckon with for a request that allows `max_tokens`."""
        return max_tokens if self._mostly_at_limit or max_tokens < self.p90 else self.p90

    def mean(self, max_tokens: int) -> int:
        """The length to reckon with for many requests together, capped by what this one allows."""
        if self._mostly_at_limit or len(self._sorted) < NUM_NEEDED:
            return self.expected(max_tokens)
        return min(max_tokens, max(1, round(self._sum / len(self._sorted))))
