"""A class's promise over the exact window: who was late, whether it is broken, and since when.

The promise is joint: at least `target` of the requests meet the TTFT *and* the TPOT objective (and the
end-to-end objective where there is one). A request without a second token has no TPOT and meets it; one that
failed meets nothing; one that its client cancelled is not counted, unless it had missed its TTFT objective by
then. A request that waits for its first token beyond the TTFT objective has missed it already: it is late from
that instant on (`Open`), and the same miss when its first token comes and when it ends. Everything in the window
is judged by the policy of now, so that figures, charts and verdict speak of the same objective after a change.

One half (`ttft`, `tpot`) *breaks* when
- its own attainment is below the target, or
- the joint attainment is, and this half has the more late requests of the two.
A window of fewer than `MIN_SAMPLES` is judged as if those that it lacks had been in time, and needs `MIN_LATE`
late ones: one slow request is no broken promise, but ten late ones of twelve are, whoever comes next.
It is *kept* again when neither is below the target by now, with a margin: the attainment must reach
`target + RECOVERY_MARGIN × (1 − target)`, or the window must have run empty. `broken_since` is the instant of
breaking, and stays until then.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from controlplane.telemetry.schema import Objective, PromiseState
from controlplane.telemetry.windows import SampleWindow
from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol.messages import LatencySample

WINDOW_S: Final = 300.0
MIN_SAMPLES: Final = 20
MIN_LATE: Final = 3
RECOVERY_MARGIN: Final = 0.1

Metric = Literal["ttft", "tpot"]
METRICS: Final[tuple[Metric, Metric]] = ("ttft", "tpot")


def governing(target: float) -> Literal["p50", "p95", "p99"]:
    """The percentile that a promise is shown by: the lowest of ours that leaves out no more than the promise does.

    So a half whose governing percentile is in time is kept; only a promise of more than 99 % goes beyond ours.
    """
    if target > 0.95:
        return "p99"
    return "p95" if target > 0.5 else "p50"


def objective_of(one: ClassPolicy) -> Objective:
    return Objective(
        ttft_s=one.slo.ttft_s,
        tpot_s=one.slo.tpot_s,
        target=one.slo.target,
        kept_again=_recovery(one.slo.target),
        governing=governing(one.slo.target),
        max_wait_s=one.max_wait_s,
    )


def objectives_of(one: ClassPolicy) -> str:
    """By what requests are judged late, as a label: `0.5/0.02/-` is TTFT, TPOT and end to end, in seconds.

    What was judged by other objectives never counts for or against these.
    """
    slo = one.slo
    return f"{slo.ttft_s:g}/{slo.tpot_s:g}/{'-' if slo.e2e_s is None else f'{slo.e2e_s:g}'}"


def is_late(sample: LatencySample, one: ClassPolicy) -> bool | None:
    """Whether an ended request missed its promise; None for one that does not count."""
    if sample.outcome == "cancelled":
        return True if _waited_s(sample) > one.slo.ttft_s else None
    if sample.met is None:
        return None
    if sample.outcome == "failed":
        return True
    if sample.ttft_s is None:
        return not sample.met
    slo = one.slo
    limits = ((sample.ttft_s, slo.ttft_s), (sample.tpot_s, slo.tpot_s), (sample.e2e_s, slo.e2e_s))
    return any(value is not None and limit is not None and value > limit for value, limit in limits)


def _waited_s(sample: LatencySample) -> float:
    """How long an ended request waited for its first token, or for its end without one."""
    return (sample.e2e_s or 0.0) if sample.ttft_s is None else sample.ttft_s


def unserved_s(sample: LatencySample) -> float | None:
    """How long an ended request waited that never got a first token; None for any other."""
    return sample.e2e_s if sample.ttft_s is None else None


def burn_rate(num: int, num_late: int, target: float) -> float | None:
    """How fast the error budget goes: 1 spends exactly all of it in its 30 days; None without requests."""
    return (num_late / num) / (1 - target) if num else None


def budget_left(num: int, num_late: int, target: float) -> float | None:
    """The share of the error budget that is left, 0 when overspent; None without requests."""
    return max(0.0, 1 - num_late / (num * (1 - target))) if num else None


def breaks(num: int, num_late: int, target: float) -> bool:
    """Whether so many late ones break the promise, whatever the samples that are still lacking turn out to be."""
    if num < MIN_SAMPLES and num_late < MIN_LATE:
        return False
    counted = max(num, MIN_SAMPLES)
    return counted - num_late < _needed(counted, target)


def recovers(num: int, num_late: int, target: float) -> bool:
    return num - num_late >= _needed(num, _recovery(target))


def _recovery(target: float) -> float:
    """The share from which a broken promise counts as kept again."""
    return target + RECOVERY_MARGIN * (1 - target)


def _needed(num: int, share: float) -> float:
    # In floats 0.07 × 100 is a hair more than 7, and exactly the target must do.
    return round(share * num, 9)


@dataclass(frozen=True, slots=True)
class Ended:
    """Requests that ended since `since` (an instant), and how many of them were late."""

    num: int
    num_late: int
    since: float


def add_up(many: Iterable[Ended]) -> Ended | None:
    """Several stretches together; None of none."""
    known = list(many)
    if not known:
        return None
    return Ended(
        num=sum(one.num for one in known),
        num_late=sum(one.num_late for one in known),
        since=min(one.since for one in known),
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples and how many of them were late: `ttft` by first tokens, the others by ended requests."""

    num: int = 0
    num_late: int = 0
    num_ttft: int = 0
    num_ttft_late: int = 0
    num_tpot: int = 0
    num_tpot_late: int = 0

    def of(self, metric: Metric) -> tuple[int, int]:
        if metric == "ttft":
            return self.num_ttft, self.num_ttft_late
        return self.num_tpot, self.num_tpot_late

    def blamed(self) -> Metric:
        """The half that answers for a joint miss."""
        return "tpot" if self.num_tpot_late > self.num_ttft_late else "ttft"


@dataclass(frozen=True, slots=True)
class Open:
    """Open requests that have missed their TTFT objective: those that still wait for a first token, and all."""

    num_overdue: int = 0
    num_missed: int = 0


@dataclass(slots=True)
class Breakage:
    """Since when each half of one class's promise is broken. Moved by `judge`, in the order of time."""

    since: dict[Metric, float] = field(default_factory=dict)

    def judge(self, counts: Counts, target: float, now: float) -> None:
        for metric in METRICS:
            if metric not in self.since and self._breaks(metric, counts, target):
                self.since[metric] = now
            elif metric in self.since and self._recovers(metric, counts, target):
                del self.since[metric]

    @staticmethod
    def _breaks(metric: Metric, counts: Counts, target: float) -> bool:
        joint = breaks(counts.num, counts.num_late, target) and counts.blamed() == metric
        return joint or breaks(*counts.of(metric), target)

    @staticmethod
    def _recovers(metric: Metric, counts: Counts, target: float) -> bool:
        joint = recovers(counts.num, counts.num_late, target) or counts.blamed() != metric
        return joint and recovers(*counts.of(metric), target)


@dataclass(frozen=True, slots=True, order=True)
class _Ended:
    at: float
    request_id: str
    late: bool = field(compare=False)
    sample: LatencySample | None = field(compare=False, default=None)


class PromiseWindow:
    """The samples of one class over the window, judged by its policy."""

    def __init__(self, one: ClassPolicy) -> None:
        self.policy = one
        self.ttft = SampleWindow(WINDOW_S)
        self.tpot = SampleWindow(WINDOW_S)
        self.unserved = SampleWindow(WINDOW_S)
        self.open = Open()
        self.breakage = Breakage()
        self._ended: list[_Ended] = []
        self._num_late = 0

    def set_policy(self, one: ClassPolicy) -> None:
        """Judge the window again. Restored samples, known by their count only, keep their judgement."""
        self.policy = one
        self._ended = [self._judged(entry) for entry in self._ended]
        self._num_late = sum(entry.late for entry in self._ended)

    def _judged(self, entry: _Ended) -> _Ended:
        if entry.sample is None:
            return entry
        return _Ended(entry.at, entry.request_id, bool(is_late(entry.sample, self.policy)), entry.sample)

    def add_first_token(self, sample: LatencySample) -> None:
        if sample.ttft_s is not None:
            self.ttft.add(sample.at, sample.ttft_s)

    def add_finished(self, sample: LatencySample) -> None:
        if sample.tpot_s is not None:
            self.tpot.add(sample.at, sample.tpot_s)
        if (waited_s := unserved_s(sample)) is not None:
            self.unserved.add(sample.at, waited_s)
        late = is_late(sample, self.policy)
        if late is not None:
            self._insert(_Ended(sample.at, sample.request_id, late, sample))

    def restore(self, at: float, ttft: Iterable[float], tpot: Iterable[float], counts: Counts) -> None:
        """Take samples that only a roll-up remembers, all at one instant.

        What its counts have in first tokens beyond `ttft` never got one, and was late.
        """
        known = list(ttft)
        for value in known:
            self.ttft.add(at, value)
        for _ in range(counts.num_ttft - len(known)):
            self.unserved.add(at, math.inf)
        for value in tpot:
            self.tpot.add(at, value)
        for number in range(counts.num):
            self._insert(_Ended(at, f"restored-{number}", number < counts.num_late))

    def _insert(self, entry: _Ended) -> None:
        insort(self._ended, entry)
        self._num_late += entry.late

    def move_to(self, now: float) -> None:
        self.ttft.move_to(now)
        self.tpot.move_to(now)
        self.unserved.move_to(now)
        old = bisect_right(self._ended, now - WINDOW_S, key=lambda entry: entry.at)
        self._num_late -= sum(entry.late for entry in self._ended[:old])
        del self._ended[:old]

    def judge(self, now: float) -> None:
        """Move the window's end to `now` and see whether the promise broke or recovered."""
        self.move_to(now)
        self.breakage.judge(self.counts(), self.policy.slo.target, now)

    def counts(self) -> Counts:
        slo, missed = self.policy.slo, self.open.num_missed
        return Counts(
            num=len(self._ended) + missed,
            num_late=self._num_late + missed,
            num_ttft=len(self.ttft) + self._num_without_token,
            num_ttft_late=self.ttft.num_above(slo.ttft_s) + self._num_without_token,
            num_tpot=len(self.tpot),
            num_tpot_late=self.tpot.num_above(slo.tpot_s),
        )

    @property
    def _num_without_token(self) -> int:
        """First tokens that are late and have not come: those still awaited, and those that never came."""
        return self.open.num_overdue + self.unserved.num_above(self.policy.slo.ttft_s)

    def state(self, metric: Metric) -> PromiseState:
        num, num_late = self.counts().of(metric)
        since = self.breakage.since.get(metric)
        return PromiseState(
            kept=since is None,
            broken_since=since,
            num_late=num_late,
            num_requests=num,
            attainment=1 - num_late / num if num else None,
        )

    def closeness(self, metric: Metric) -> float:
        """The percentile at the target itself over the objective; −∞ without samples.

        It is over 1 exactly where the attainment is below the target, whatever percentile governs.
        """
        slo = self.policy.slo
        window, limit = (self.ttft, slo.ttft_s) if metric == "ttft" else (self.tpot, slo.tpot_s)
        value = window.percentile(slo.target, self._num_without_token if metric == "ttft" else 0)
        return -math.inf if value is None else value / limit


def replay(rows: Iterable[tuple[float, Counts]], target: float) -> dict[Metric, float]:
    """Since when a promise is broken, from past intervals in order: (end, counts)."""
    breakage, recent = Breakage(), list[tuple[float, Counts]]()
    for end, counts in rows:
        recent = [row for row in recent if row[0] > end - WINDOW_S]
        recent.append((end, counts))
        breakage.judge(total(row[1] for row in recent), target, end)
    return breakage.since


def total(many: Iterable[Counts]) -> Counts:
    """The counts of several intervals together."""
    known = list(many)
    return Counts(**{one.name: sum(getattr(counts, one.name) for counts in known) for one in fields(Counts)})
