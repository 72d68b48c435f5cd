"""Exact sliding windows. Nothing here reads a clock: whoever asks says where the window ends."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

from controlplane.telemetry.schema import Percentiles


def nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile: the least sample that at least `share` of them do not exceed."""
    return ordered[_rank(share, len(ordered)) - 1] if ordered else None


def _rank(share: float, num: int) -> int:
    # 0.95 × 20 is 19 on paper and a hair more in floats; the next rank up would be one too many.
    return max(1, math.ceil(round(share * num, 9)))


def percentiles(ordered: Sequence[float]) -> Percentiles:
    """p50, p95 and p99 of sorted samples."""
    return Percentiles(
        p50=nearest_rank(ordered, 0.50),
        p95=nearest_rank(ordered, 0.95),
        p99=nearest_rank(ordered, 0.99),
        num=len(ordered),
    )


def weighted_median(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The smallest value with at least half of the weight at or below it; pairs are (value, weight)."""
    ordered = sorted(pairs)
    half, seen = sum(weight for _, weight in ordered) / 2, 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= half:
            return value
    return None


class SampleWindow:
    """The samples of the last `length_s`, in whatever order they came; percentiles without sorting again."""

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self._by_time: list[tuple[float, float]] = []
        self._by_value: list[float] = []

    def __len__(self) -> int:
        return len(self._by_time)

    def add(self, at: float, value: float) -> None:
        insort(self._by_time, (at, value))
        insort(self._by_value, value)

    def move_to(self, now: float) -> None:
        """Forget what is `length_s` old or older."""
        old = bisect_right(self._by_time, (now - self.length_s, math.inf))
        for _, value in self._by_time[:old]:
            del self._by_value[bisect_left(self._by_value, value)]
        del self._by_time[:old]

    def percentiles(self) -> Percentiles:
        return percentiles(self._by_value)

    def percentile(self, share: float) -> float | None:
        """The nearest-rank percentile of any share."""
        return nearest_rank(self._by_value, share)


class SlidingSum:
    """The sum of amounts of the last `length_s`, in whatever order they came."""

    def __init__(self, length_s: float) -> None:
        self.length_s = length_s
        self._amounts: list[tuple[float, float]] = []
        self._sum = 0.0

    def add(self, at: float, amount: float) -> None:
        if amount:
            insort(self._amounts, (at, amount))
            self._sum += amount

    def total(self, now: float) -> float:
        old = bisect_right(self._amounts, (now - self.length_s, math.inf))
        self._sum -= math.fsum(amount for _, amount in self._amounts[:old])
        del self._amounts[:old]
        if not self._amounts:
            # What rounding left behind must not outlive the amounts.
            self._sum = 0.0
        return self._sum

    def rate(self, now: float, since: float | None) -> float:
        """Per second over the window, or over the time since `since` where that is shorter."""
        length = self.length_s if since is None else min(self.length_s, now - since)
        return self.total(now) / length if length > 0 else 0.0
