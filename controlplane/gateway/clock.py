"""Two clocks: the process's own, for durations, and Redis's, for instants that other processes read."""

from __future__ import annotations

import time
from typing import Final

DRIFT_S: Final = 30.0  # a better round trip that is older than this no longer counts


class RedisClock:
    """Redis's time: this process's monotonic clock plus an offset, from the shortest recent round trip."""

    def __init__(self) -> None:
        self._offset = time.time() - time.perf_counter()
        self._round_trip_s = float("inf")
        self._taken_at = float("-inf")

    def observe(self, redis_at: float, sent_at: float, received_at: float) -> None:
        """A reply with Redis's time; `sent_at` and `received_at` are readings of `perf_counter`."""
        round_trip_s = received_at - sent_at
        if round_trip_s <= self._round_trip_s or received_at - self._taken_at > DRIFT_S:
            self._offset = redis_at - (sent_at + received_at) / 2
            self._round_trip_s, self._taken_at = round_trip_s, received_at

    def at(self, reading: float) -> float:
        """Redis's time at a reading of `perf_counter`."""
        return reading + self._offset

    def now(self) -> float:
        """Redis's time now."""
        return self.at(time.perf_counter())
