"""What every mirror of the queue tells, told once.

A request that nobody has claimed waits in the mirrors of all workers. When its bound passes, each of them says so at
once, because none can know whether another still lives; where their events meet, the first is kept. Later steps of a
request's life are known to the one worker that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAX_REMEMBERED: Final = 10_000


class FirstOfMirrors:
    """Remembers whose miss has been told: the last 10,000 requests."""

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._max_remembered = max_remembered
        self._told: dict[str, None] = {}

    def is_news(self, kind: str, request_id: str, numbers: Mapping[str, object]) -> bool:
        """Whether this event says what no earlier one has said. The wait of a parked request is its holder's."""
        if kind != "bound_missed" or "parked_s" in numbers:
            return True
        if request_id in self._told:
            return False
        self._told[request_id] = None
        if len(self._told) > self._max_remembered:
            del self._told[next(iter(self._told))]
        return True
