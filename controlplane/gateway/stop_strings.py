"""Stop strings over a growing text: found across token boundaries, never emitted, not even in part."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feeds on text, gives back what is safe to emit; `stopped` once a stop string appeared.

    The earliest occurrence wins; a tail that may still become a stop string is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be emitted now."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        at = min((found for stop in self._stops if (found := text.find(stop)) >= 0), default=-1)
        if at >= 0:
            self._held, self.stopped = "", True
            return text[:at]
        held = self._undecided(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, at the end of an output that did not stop."""
        text, self._held = self._held, ""
        return text

    def _undecided(self, text: str) -> int:
        """Length of the longest tail that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
