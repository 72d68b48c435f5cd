"""Why a promise broke: what the events say, kept for as long as it stays broken.

Nothing is inferred from latencies. A broken promise gets as causes only events that say so themselves: their
kind can make that half of a promise late, and they concern the class. The events are forgotten after a quarter
of an hour and live in one process; what they explained is remembered with the break, and the leader keeps it in
Redis, so that neither time nor a restart loses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from controlplane.telemetry.decisions import OBSERVED, POLICY_APPLIED, EventLog, Key, key_of
from controlplane.telemetry.fleet import BusySlots
from controlplane.telemetry.promise import Metric
from controlplane.telemetry.schema import Cause, WorkerLive
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import ClassLoad, EventRecord, Message

LOOKBACK_S: Final = 60.0
MAX_CAUSES: Final = 3
RESTARTED: Final = "gateway_restarted"

EXPLAINING_KINDS: Final[dict[Metric, frozenset[str]]] = {
    "ttft": frozenset(
        {"not_preempted", "out_of_blocks", "bound_missed", "policy_applied", "worker_failed", "slots_busy", RESTARTED}
    ),
    "tpot": frozenset({"preempted", "out_of_blocks", "policy_applied", "worker_failed", "steps_slow"}),
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
WHOLE_WORKER: Final = frozenset({"batch_limit_changed", "policy_applied", "worker_failed", RESTARTED})
"""Kinds that are about no class; they explain a break only when it followed within a minute."""

GRACE_S: Final = {"policy_applied": 2.0, RESTARTED: 2.0}
"""The page judges by a new policy at once; a worker says up to a second later that it runs it. A gateway that has
just started speaks a little after it serves."""

RULES: Final = {
    "class_may_not_yield": "classes.{index}.preemption.preemptible",
    "past_max_generated": "classes.{index}.preemption.max_generated_tokens",
    "past_max_preemptions": "classes.{index}.preemption.max_preemptions",
    "within_min_residency": "classes.{index}.preemption.min_residency_s",
    "head_holds_blocks": "memory.max_bypasses",
    "itl_above_band": "batch_limit.itl_target_s",
}


class Explanation(Struct, frozen=True, kw_only=True):
    """One group of like events: the one that is told, and how many concerned the class."""

    event: EventRecord
    num: int


class BrokenHalf(Struct, frozen=True, kw_only=True):
    """One half of a class's promise that is broken, and what explains it."""

    class_id: str
    metric: Metric
    since: float
    explanations: tuple[Explanation, ...] = ()


class BrokenPromises(Message, frozen=True, kw_only=True):
    """All broken halves of a pool, as they are kept in Redis."""

    halves: tuple[BrokenHalf, ...] = ()


class Causes:
    """The broken halves and what has explained them so far."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._halves: dict[tuple[str, Metric], BrokenHalf] = {}

    def resume(self, half: BrokenHalf) -> None:
        """Take up what another process remembered."""
        self._halves[half.class_id, half.metric] = half

    def follow(self, broken: Iterable[tuple[str, Metric, float]], now: float) -> None:
        """Look once more for what explains the halves that are broken (class, half, since), and forget others."""
        followed: dict[tuple[str, Metric], BrokenHalf] = {}
        for class_id, metric, since in broken:
            half = self._halves.get((class_id, metric))
            if half is None or half.since != since:
                half = BrokenHalf(class_id=class_id, metric=metric, since=since)
            found = explanations(self._log, half, now)
            followed[class_id, metric] = _explained(half, (*half.explanations, *found))
        self._halves = followed

    def halves(self) -> tuple[BrokenHalf, ...]:
        """The broken halves, as `follow` last saw them."""
        return tuple(self._halves.values())

    def told(self, class_id: str, metric: Metric, now: float) -> tuple[Cause, ...]:
        """What made this half break, oldest first; empty when no event says so."""
        chosen = sorted(self._ranked(class_id, metric)[:MAX_CAUSES], key=lambda one: one.event.at)
        return tuple(Cause(at=one.event.at, text=self._text(one.event, now)) for one in chosen)

    def _text(self, event: EventRecord, now: float) -> str:
        num = 0 if event.kind in OBSERVED else self._log.num_like(event, now)
        like = f" {num:,} like it in the last minute." if num > 1 else ""
        return self._log.words(event) + like

    def rule_path(self, class_id: str, metric: Metric, policy: Policy) -> str | None:
        """The rule of the policy that the explaining events name most often."""
        paths = (rule_of(one.event, policy) for one in self._ranked(class_id, metric))
        return next((path for path in paths if path), None)

    def _ranked(self, class_id: str, metric: Metric) -> list[Explanation]:
        """The most frequent first, what was only observed last.

        Of several policies only the newest: it is the one that ran when the promise broke.
        """
        half = self._halves.get((class_id, metric))
        found = list(half.explanations) if half else []
        policies = [one for one in found if one.event.kind == POLICY_APPLIED]
        for older in sorted(policies, key=_when)[:-1]:
            found.remove(older)
        return sorted(found, key=lambda one: (one.event.kind in OBSERVED, -one.num, *_when(one)))


def explanations(log: EventLog, half: BrokenHalf, now: float) -> list[Explanation]:
    """What the log holds since a minute before the break, by group."""
    found: list[Explanation] = []
    for key, events in log.groups(half.since - LOOKBACK_S, now):
        if key[0] in EXPLAINING_KINDS[half.metric] or key[:2] in EXPLAINING_REASONS[half.metric]:
            concerned = [one for one in events if concerns(one, half.class_id) and _in_time(one, half.since)]
            if concerned:
                told = min(concerned, key=lambda one: _telling(one, half.since))
                found.append(Explanation(event=told, num=len(concerned)))
    return found


def slots_busy(at: float, load: ClassLoad, busy: BusySlots) -> EventRecord:
    """What the workers' own figures say while a class waits because every slot is busy."""
    return EventRecord(
        at=at,
        kind="slots_busy",
        reason="batch_limit" if busy.limited else "all_slots",
        class_id=load.class_id,
        numbers={
            "num_slots": busy.num,
            "holders": holders(busy.running),
            "num_waiting": load.num_waiting,
            "oldest_wait_s": load.oldest_wait_s,
        },
    )


def gateway_restarted(at: float, away_s: float) -> EventRecord:
    """A web process was started again, `away_s` after the last word of the one before."""
    return EventRecord(at=at, kind=RESTARTED, reason="restarted", numbers={"away_s": away_s})


def steps_slow(at: float, class_id: str, tpot_s: float, slowest: WorkerLive) -> EventRecord:
    """What a worker's own figures say while each of its steps takes longer than a class promises for a token."""
    return EventRecord(
        at=at,
        kind="steps_slow",
        reason="step_over_tpot",
        class_id=class_id,
        numbers={
            "worker": slowest.id,
            "step_s": slowest.step_p50_s or 0.0,
            "tpot_s": tpot_s,
            "num_running": slowest.num_running,
        },
    )


def holders(running: Mapping[str, int]) -> str:
    """`7 with low, 6 with medium and 3 with high`"""
    ordered = sorted(running.items(), key=lambda pair: (-pair[1], pair[0]))
    *others, last = [f"{num:,} with {class_id}" for class_id, num in ordered] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _in_time(event: EventRecord, since: float) -> bool:
    return event.kind not in WHOLE_WORKER or event.at <= since + GRACE_S.get(event.kind, 0.0)


def _telling(event: EventRecord, since: float) -> tuple[float, str]:
    """The least is told: of what happened the first; of what was seen the sight nearest to the break."""
    return abs(event.at - since) if event.kind in OBSERVED else event.at, event.request_id


def _explained(half: BrokenHalf, known: Iterable[Explanation]) -> BrokenHalf:
    """The half with one explanation a group."""
    groups: dict[Key, Explanation] = {}
    for one in known:
        key = key_of(one.event)
        groups[key] = _merged(groups[key], one, half.since) if key in groups else one
    return BrokenHalf(
        class_id=half.class_id, metric=half.metric, since=half.since, explanations=tuple(groups.values())
    )


def _merged(one: Explanation, other: Explanation, since: float) -> Explanation:
    told = min(one.event, other.event, key=lambda event: _telling(event, since))
    return Explanation(event=told, num=max(one.num, other.num))


def _when(one: Explanation) -> tuple[float, str]:
    return one.event.at, one.event.request_id


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
