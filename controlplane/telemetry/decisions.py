"""The scheduler's events as operators read them: similar ones folded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controlplane.telemetry.schema import BatchLimitChange, Decision
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.mirrors import FirstOfMirrors

Render = Callable[[EventRecord], str]

LIKE_S: Final = 60.0
KEEP_S: Final = 900.0
MAX_PER_KIND: Final = 2_000
MAX_DECISIONS: Final = 40
MAX_LIMIT_CHANGES: Final = 20

ROUTINE: Final = frozenset({"first_token", "tokens_emitted"})
ROUTINE_REASONS: Final = frozenset(
    {("queued", "arrived"), ("finished", "stopped"), ("finished", "length"), ("finished", "cancelled")}
)

OBSERVED: Final = frozenset({"slots_busy", "steps_slow", "gateway_restarted"})
"""Kinds that the fold saw in what workers and gateways say: they explain, but nobody decided them."""

POLICY_APPLIED: Final = "policy_applied"
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True, order=True)
class _Entry:
    at: float
    request_id: str
    worker: str
    event: EventRecord = field(compare=False)


class EventLog:
    """The events of the last quarter of an hour, grouped by what makes them alike, each group ordered by time."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._groups: dict[Key, list[_Entry]] = {}
        self._mirrors = FirstOfMirrors()

    def take(self, source: str, events: Iterable[EventRecord]) -> None:
        """Events of one worker or gateway."""
        for event in events:
            if event.kind in ROUTINE or (event.kind, event.reason) in ROUTINE_REASONS:
                continue
            if not self._mirrors.is_news(event.kind, event.request_id, event.numbers):
                continue
            group = self._groups.setdefault(key_of(event), [])
            insort(group, _Entry(event.at, event.request_id, source, event))
            del group[:-MAX_PER_KIND]

    def move_to(self, now: float) -> None:
        for key, group in list(self._groups.items()):
            del group[: bisect_right(group, now - KEEP_S, key=_at)]
            if not group:
                del self._groups[key]

    def decisions(self) -> tuple[Decision, ...]:
        """One line for each group, newest first: its newest event, and how many like it a minute before."""
        shown = (group[-1] for key, group in self._groups.items() if key[0] not in OBSERVED)
        newest = sorted(shown, reverse=True)
        return tuple(self._decision(entry) for entry in newest[:MAX_DECISIONS])

    def _decision(self, entry: _Entry) -> Decision:
        event = entry.event
        return Decision(
            at=event.at,
            kind=event.kind,
            reason=event.reason,
            class_id=event.class_id,
            request_id=event.request_id,
            text=self.words(event),
            num_like=self.num_like(event, event.at) - 1,
        )

    def words(self, event: EventRecord) -> str:
        """An event as a sentence."""
        return self._render(event)

    def num_like(self, event: EventRecord, now: float) -> int:
        """How many events like this one, itself included, the last minute saw."""
        group = self._groups.get(key_of(event), [])
        return bisect_right(group, now, key=_at) - bisect_right(group, now - LIKE_S, key=_at)

    def groups(self, start: float, end: float) -> Iterator[tuple[Key, list[EventRecord]]]:
        """The events from `start` to `end`, grouped by what makes them alike, each group ordered by time."""
        for key, group in self._groups.items():
            found = group[bisect_left(group, start, key=_at) : bisect_right(group, end, key=_at)]
            if found:
                yield key, [entry.event for entry in found]

    def limit_changes(self) -> tuple[BatchLimitChange, ...]:
        """The batch limit's moves, newest first."""
        moves = [
            entry for key, group in self._groups.items() if key[0] == "batch_limit_changed" for entry in group
        ]
        moves.sort(reverse=True)
        return tuple(_limit_change(entry) for entry in moves[:MAX_LIMIT_CHANGES])


def _limit_change(entry: _Entry) -> BatchLimitChange:
    numbers = entry.event.numbers
    return BatchLimitChange(
        at=entry.at,
        worker=entry.worker,
        before=int(numbers.get("before", 0)),
        after=int(numbers.get("after", 0)),
        itl_s=float(numbers.get("itl_s", 0.0)),
        target_s=float(numbers.get("target_s", 0.0)),
    )


def _at(entry: _Entry) -> float:
    return entry.at


def key_of(event: EventRecord) -> Key:
    """Events with the same key are like each other; two versions of the policy are not."""
    about = event.numbers.get("version", "") if event.kind == POLICY_APPLIED else event.class_id
    return event.kind, event.reason, str(about)
