"""A class's promise over the exact window: who was late, whether it is broken, and since when.

The promise is joint: at least `target` of the requests meet the TTFT *and* the TPOT objective (and the
end-to-end objective where there is one). Every count is over the same requests, those that are *judged*: they have
ended, or have missed their TTFT objective already and are open (`Open`). One that waits beyond the objective is late
from that instant on, and stays the same miss when its first token comes and when it ends. A request without a second
token has no TPOT and meets it; one that failed meets nothing; one that its client cancelled is not judged, unless
it had missed its TTFT objective by then; neither is one whose times nobody has, as its gateway died.

A request is judged by the objectives that hold when it ends, once. When they change, the window begins anew
(`judged_since`): what was judged by other objectives says nothing of these, here as in the error budget.

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
from dataclasses import dataclass, field
from functools import reduce
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


def judged(sample: LatencySample, one: ClassPolicy) -> Counts | None:
    """What an ended request counts as; None for one that is not judged."""
    slo = one.slo
    ttft_late = _waited_s(sample) > slo.ttft_s
    tpot_late = sample.tpot_s is not None and sample.tpot_s > slo.tpot_s
    if sample.outcome == "cancelled":
        late = ttft_late
    elif sample.met is None:
        return None
    elif sample.outcome == "failed":
        late = True
    elif sample.ttft_s is None:
        late = not sample.met
    else:
        e2e_late = None not in (slo.e2e_s, sample.e2e_s) and (sample.e2e_s or 0.0) > (slo.e2e_s or 0.0)
        late = ttft_late or tpot_late or e2e_late
    if sample.outcome == "cancelled" and not late:
        return None
    return Counts(1, late, late and ttft_late, late and tpot_late)


def _waited_s(sample: LatencySample) -> float:
    """How long an ended request is known to have waited for its first token, or for its end without one."""
    if sample.ttft_s is not None:
        return sample.ttft_s
    return 0.0 if sample.num_output_tokens else sample.e2e_s or 0.0


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
    """Judged requests, and how many of them were late: by anything, by TTFT, by TPOT."""

    num: int = 0
    num_late: int = 0
    num_ttft_late: int = 0
    num_tpot_late: int = 0

    def plus(self, other: Counts, sign: int = 1) -> Counts:
        """The sum, or with `sign` −1 the difference."""
        return Counts(
            self.num + sign * other.num,
            self.num_late + sign * other.num_late,
            self.num_ttft_late + sign * other.num_ttft_late,
            self.num_tpot_late + sign * other.num_tpot_late,
        )

    @property
    def joint(self) -> tuple[int, int]:
        return self.num, self.num_late

    def of(self, metric: Metric) -> tuple[int, int]:
        return self.num, self.num_ttft_late if metric == "ttft" else self.num_tpot_late

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
        joint = breaks(*counts.joint, target) and counts.blamed() == metric
        return joint or breaks(*counts.of(metric), target)

    @staticmethod
    def _recovers(metric: Metric, counts: Counts, target: float) -> bool:
        joint = recovers(*counts.joint, target) or counts.blamed() != metric
        return joint and recovers(*counts.of(metric), target)


@dataclass(frozen=True, slots=True, order=True)
class _Ended:
    at: float
    request_id: str
    counts: Counts = field(compare=False)


class PromiseWindow:
    """The samples of one class over the window, judged by one set of objectives.

    `judged_since` is when they came to hold, and `before` what held until then; None where that is not known, or never
    was different. What ended earlier, and is told only now, is none of the window's.
    """

    def __init__(
        self, one: ClassPolicy, judged_since: float | None = None, before: ClassPolicy | None = None
    ) -> None:
        self.policy = one
        self.judged_since = judged_since
        self._before = before
        self.ttft = SampleWindow(WINDOW_S)
        self.tpot = SampleWindow(WINDOW_S)
        self.open = Open()
        self.breakage = Breakage()
        self._ended: list[_Ended] = []
        self._sum = Counts()

    def under(self, one: ClassPolicy, at: float | None) -> PromiseWindow:
        """This window where the class's objectives are the same in a new policy, else an empty one from `at` on."""
        if objectives_of(one) != objectives_of(self.policy):
            return PromiseWindow(one, at, before=self.policy)
        self.policy = one
        return self

    def rules_at(self, at: float) -> ClassPolicy:
        """By what a request is judged that ended at this instant."""
        return self._before if self._before is not None and self._is_before(at) else self.policy

    def _is_before(self, at: float) -> bool:
        return self.judged_since is not None and at < self.judged_since

    def begins_at(self, now: float) -> float | None:
        """Where the window is cut short: when the objectives changed, if that is within it; else None."""
        recent = self.judged_since is not None and self.judged_since > now - WINDOW_S
        return self.judged_since if recent else None

    def add_first_token(self, sample: LatencySample) -> None:
        if sample.ttft_s is not None and not self._is_before(sample.at):
            self.ttft.add(sample.at, sample.ttft_s)

    def add_finished(self, sample: LatencySample) -> None:
        if self._is_before(sample.at):
            return
        if sample.tpot_s is not None:
            self.tpot.add(sample.at, sample.tpot_s)
        if counts := judged(sample, self.policy):
            self._insert(_Ended(sample.at, sample.request_id, counts))

    def restore(self, at: float, ttft: Iterable[float], tpot: Iterable[float], counts: Counts) -> None:
        """Take samples that only a roll-up remembers, all at one instant."""
        for value in ttft:
            self.ttft.add(at, value)
        for value in tpot:
            self.tpot.add(at, value)
        self._insert(_Ended(at, "restored", counts))

    def _insert(self, entry: _Ended) -> None:
        insort(self._ended, entry)
        self._sum = self._sum.plus(entry.counts)

    def move_to(self, now: float) -> None:
        self.ttft.move_to(now)
        self.tpot.move_to(now)
        old = bisect_right(self._ended, now - WINDOW_S, key=lambda entry: entry.at)
        for entry in self._ended[:old]:
            self._sum = self._sum.plus(entry.counts, -1)
        del self._ended[:old]

    def judge(self, now: float) -> None:
        """Move the window's end to `now` and see whether the promise broke or recovered."""
        self.move_to(now)
        self.breakage.judge(self.counts(), self.policy.slo.target, now)

    def counts(self) -> Counts:
        missed = self.open.num_missed
        return self._sum.plus(Counts(missed, missed, missed))

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

    def closeness(self, metric: Metric) -> tuple[float, float]:
        """How near a half is to its limit, to be compared: by the share that was late, which judges, then by latency.

        The first is over 1 exactly where the attainment is below the target; the second is the percentile at the
        target over the objective. Both −∞ without samples.
        """
        slo, counts = self.policy.slo, self.counts()
        window, limit = (self.ttft, slo.ttft_s) if metric == "ttft" else (self.tpot, slo.tpot_s)
        value = window.percentile(slo.target)
        if value is None and not counts.num:
            return -math.inf, -math.inf
        late = burn_rate(*counts.of(metric), slo.target) or 0.0
        return round(late, 9), (value or 0.0) / limit


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
    return reduce(Counts.plus, many, Counts())
