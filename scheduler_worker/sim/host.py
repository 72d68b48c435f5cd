"""What a worker's host adds around its device, on simulated time."""

from __future__ import annotations


class Host:
    """The plainest: every way to the queue or back takes the same, all else nothing.

    `now` is the simulated instant at which it is asked. Seconds.
    """

    def __init__(self, network_s: float) -> None:
        self._network_s = network_s

    def news_s(self, now: float) -> float:
        """From the queue until the worker's loop could know."""
        return self._network_s

    def claim_s(self, now: float) -> float:
        """From the worker's loop to the queue."""
        return self._network_s

    def answer_s(self, now: float) -> float:
        """From the queue back to the loop that claimed."""
        return self._network_s

    def beside_s(self, now: float, num_rows: int) -> float:
        """What a step of so many rows takes beyond the device's own time, which is all that a cost model learns."""
        return 0.0
