"""How long the disk makes a writer wait, while something else is measured.

A request is accepted when Postgres has it on disk. A commit that waits may wait for the disk or for Postgres itself: a
file of the bench's own, written and synchronised ten times a second, tells the two apart.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

INTERVAL_S = 0.1
NUM_BYTES = 8192


class DiskProbe:
    """From `start` to `stop`; `waits` are when each began (Unix time) and how many seconds it took."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "disk-probe"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disk-probe", daemon=True)
        self.waits: list[tuple[float, float]] = []

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """After the wait that is under way; the file goes."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._path.unlink(missing_ok=True)

    def longest_s(self, begin: float, end: float) -> float:
        """Of the waits that began between these two instants; 0 if there were none."""
        return max((seconds for at, seconds in list(self.waits) if begin <= at <= end), default=0.0)

    def _run(self) -> None:
        with self._path.open("wb", buffering=0) as file:
            while not self._ended.wait(INTERVAL_S):
                at, began = time.time(), time.perf_counter()
                file.seek(0)
                file.write(bytes(NUM_BYTES))
                os.fsync(file.fileno())
                self.waits.append((at, time.perf_counter() - began))
