"""The scheduler's events as operators read them: similar ones folded, and what they explain.

Nothing is inferred from figures. A broken promise gets as causes only events that say so themselves: their
kind can make that half of a promise late, and they concern the class.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controlplane.telemetry.promise import Metric
from controlplane.telemetry.schema import BatchLimitChange, Cause, Decision
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import EventRecord

Render = Callable[[EventRecord], str]

LIKE_S: Final = 60.0
KEEP_S: Final = 900.0
LOOKBACK_S: Final = 60.0
MAX_PER_KIND: Final = 2_000
MAX_DECISIONS: Final = 40
MAX_CAUSES: Final = 3
MAX_LIMIT_CHANGES: Final = 20

ROUTINE: Final = frozenset({"first_token", "tokens_emitted"})
ROUTINE_REASONS: Final = frozenset(
    {("queued", "arrived"), ("finished", "stopped"), ("finished", "length"), ("finished", "cancelled")}
)

EXPLAINING_KINDS: Final[dict[Metric, frozenset[str]]] = {
    "ttft": frozenset({"not_preempted", "out_of_blocks", "bound_missed", "policy_applied", "worker_failed"}),
    "tpot": frozenset({"preempted", "out_of_blocks", "policy_applied", "worker_failed"}),
}
EXPLAINING_REASONS: Final[dict[Metric, frozenset[tuple[str, str]]]] = {
    "ttft": frozenset(
        {
            ("queued", "requeued"),
            ("batch_limit_changed", "itl_above_band"),
            ("batch_limit_changed", "out_of_memory"),
        }
    ),
    "tpot": frozenset(
        {
            ("queued", "requeued"),
            ("bound_missed", "worker_slowed"),
            ("batch_limit_changed", "out_of_memory"),
        }
    ),
}
WHOLE_WORKER: Final = frozenset({"batch_limit_changed", "policy_applied", "worker_failed"})
"""Kinds that are about no class; they explain a break only when it followed within a minute."""

GRACE_S: Final = {"policy_applied": 2.0}
"""The page judges by a new policy at once; a worker says up to a second later that it runs it."""

RULES: Final = {
    "class_may_not_yield": "classes.{index}.preemption.preemptible",
    "past_max_generated": "classes.{index}.preemption.max_generated_tokens",
    "past_max_preemptions": "classes.{index}.preemption.max_preemptions",
    "within_min_residency": "classes.{index}.preemption.min_residency_s",
    "head_holds_blocks": "memory.max_bypasses",
    "itl_above_band": "batch_limit.itl_target_s",
}

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

    def take(self, source: str, events: Iterable[EventRecord]) -> None:
        """Events of one worker or gateway."""
        for event in events:
            if event.kind in ROUTINE or (event.kind, event.reason) in ROUTINE_REASONS:
                continue
            group = self._groups.setdefault(_key(event), [])
            insort(group, _Entry(event.at, event.request_id, source, event))
            del group[:-MAX_PER_KIND]

    def move_to(self, now: float) -> None:
        for key, group in list(self._groups.items()):
            del group[: bisect_right(group, now - KEEP_S, key=_at)]
            if not group:
                del self._groups[key]

    def decisions(self) -> tuple[Decision, ...]:
        """One line for each group, newest first: its newest event, and how many like it a minute before."""
        newest = sorted((group[-1] for group in self._groups.values()), reverse=True)
        return tuple(self._decision(entry) for entry in newest[:MAX_DECISIONS])

    def _decision(self, entry: _Entry) -> Decision:
        event = entry.event
        return Decision(
            at=event.at,
            kind=event.kind,
            reason=event.reason,
            class_id=event.class_id,
            request_id=event.request_id,
            text=self._render(event),
            num_like=self._num_within(self._groups[_key(event)], event.at) - 1,
        )

    @staticmethod
    def _num_within(group: list[_Entry], now: float) -> int:
        return bisect_right(group, now, key=_at) - bisect_right(group, now - LIKE_S, key=_at)

    def limit_changes(self) -> tuple[BatchLimitChange, ...]:
        """The batch limit's moves, newest first."""
        moves = [
            entry for key, group in self._groups.items() if key[0] == "batch_limit_changed" for entry in group
        ]
        moves.sort(reverse=True)
        return tuple(_limit_change(entry) for entry in moves[:MAX_LIMIT_CHANGES])

    def causes(self, class_id: str, metric: Metric, since: float, now: float) -> tuple[Cause, ...]:
        """What the events say made this promise break, oldest first; empty when none says so."""
        chosen = sorted(entry for entry, _ in self._explanations(class_id, metric, since, now)[:MAX_CAUSES])
        return tuple(Cause(at=entry.at, text=self._cause_text(entry, now)) for entry in chosen)

    def _cause_text(self, entry: _Entry, now: float) -> str:
        num = self._num_within(self._groups[_key(entry.event)], now)
        like = f" {num:,} like it in the last minute." if num > 1 else ""
        return self._render(entry.event) + like

    def rule_path(
        self, class_id: str, metric: Metric, since: float, now: float, policy: Policy
    ) -> str | None:
        """The rule of the policy that the explaining events name most often."""
        for entry, _ in self._explanations(class_id, metric, since, now):
            if path := rule_of(entry.event, policy):
                return path
        return None

    def _explanations(
        self, class_id: str, metric: Metric, since: float, now: float
    ) -> list[tuple[_Entry, int]]:
        """The first event of each explaining group since a minute before the break; most frequent first.

        Of several policies only the newest: it is the one that ran when the promise broke.
        """
        found: list[tuple[_Entry, int]] = []
        for key, group in self._groups.items():
            if key[0] in EXPLAINING_KINDS[metric] or key[:2] in EXPLAINING_REASONS[metric]:
                until = since + GRACE_S.get(key[0], 0.0) if key[0] in WHOLE_WORKER else now
                found.extend(_first(group, class_id, since - LOOKBACK_S, until))
        policies = [pair for pair in found if pair[0].event.kind == POLICY_APPLIED]
        for older in sorted(policies)[:-1]:
            found.remove(older)
        return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _first(group: list[_Entry], class_id: str, start: float, end: float) -> Iterator[tuple[_Entry, int]]:
    entries = group[bisect_left(group, start, key=_at) : bisect_right(group, end, key=_at)]
    concerned = [entry for entry in entries if concerns(entry.event, class_id)]
    if concerned:
        yield concerned[0], len(concerned)


def concerns(event: EventRecord, class_id: str) -> bool:
    """Whether an event is about a class, or about the worker that serves all of them."""
    return event.class_id == class_id or event.kind in WHOLE_WORKER


def rule_of(event: EventRecord, policy: Policy) -> str | None:
    """The path of the policy's rule that decided an event, where there is no doubt which."""
    template = RULES.get(event.reason)
    if template is None or "{index}" not in template:
        return template
    index = _who_did_not_yield(event, policy)
    return None if index is None else template.format(index=index)


def _who_did_not_yield(event: EventRecord, policy: Policy) -> int | None:
    """The one less urgent class whose rule it can have been; the event names only who asked."""
    rank = next((one.rank for one in policy.classes if one.id == event.class_id), None)
    if rank is None:
        return None
    lower = [(number, one) for number, one in enumerate(policy.classes) if one.rank > rank]
    may_yield = event.reason != "class_may_not_yield"
    candidates = [number for number, one in lower if one.preemption.preemptible == may_yield]
    return candidates[0] if len(candidates) == 1 else None


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


def _key(event: EventRecord) -> Key:
    """Events with the same key are like each other; two versions of the policy are not."""
    about = event.numbers.get("version", "") if event.kind == POLICY_APPLIED else event.class_id
    return event.kind, event.reason, str(about)
