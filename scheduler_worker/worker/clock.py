"""The core's `now`: the monotonic clock plus the offset to Redis's time, never backwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RedisClock:
    """Seconds since the epoch on Redis's clock. Any thread may read or adjust it.

    When Redis's time steps back, this clock runs at half speed until both agree again.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset = 0.0
        self._last = 0.0
        self._last_read = 0.0
        self._lock = threading.Lock()

    def adjust(self, redis_time: float, sent: float, received: float) -> None:
        """Redis said `redis_time` between the monotonic instants `sent` and `received`."""
        with self._lock:
            self._offset = redis_time - (sent + received) / 2

    def now(self) -> float:
        """The present instant; at least the one returned before."""
        with self._lock:
            read = self._monotonic()
            target = read + self._offset
            if target < self._last:
                target = self._last + (read - self._last_read) / 2
            self._last, self._last_read = target, read
            return target
