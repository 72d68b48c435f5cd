"""Where the time of a start goes."""

from __future__ import annotations

import time


class StartClock:
    """Seconds of each part of a start, in order."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._parts: list[tuple[str, float]] = []

    def ended(self, part: str) -> None:
        """This part took the time since the one before."""
        before, self._at = self._at, time.perf_counter()
        self._parts.append((part, self._at - before))

    def __str__(self) -> str:
        return ", ".join(f"{part} {seconds:.1f} s" for part, seconds in self._parts)
