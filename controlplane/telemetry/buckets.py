"""Ten-second intervals: what becomes a chart's point at once and a roll-up a little later."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from controlplane.telemetry.promise import Counts, Ended, judged, objectives_of
from controlplane.telemetry.schema import Percentiles, Point
from controlplane.telemetry.sketch import Sketch, sketch_of
from controlplane.telemetry.windows import percentiles, weighted_median
from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol.messages import GatewayTelemetry, LatencySample, WorkerTelemetry

POINT_S: Final = 10.0
POINT_GRACE_S: Final = 2.0
"""A point closes this long after its end: what a source sent meanwhile still counts."""
ROLL_UP_GRACE_S: Final = 10.0

NOTHING: Final = Counts()

Judged = tuple[str, str]
"""A class and the objectives that its requests were judged by."""
Resolve = Callable[[str], ClassPolicy | None]


def start_of(at: float) -> float:
    """The start of the interval that an instant lies in."""
    return math.floor(at / POINT_S) * POINT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRollup:
    """One class over one interval, ready to be stored. Latencies in seconds, as sketches.

    `objectives` says by what its requests were judged: a class has two in the interval in which they changed.
    """

    class_id: str
    objectives: str
    counts: Counts = NOTHING
    ttft: Sketch = field(default_factory=dict)
    tpot: Sketch = field(default_factory=dict)
    num_tokens: int = 0
    num_refused: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollup:
    """One closed interval: its classes, and its point."""

    started_at: float
    classes: tuple[ClassRollup, ...]
    point: Point


@dataclass(slots=True)
class _ClassBucket:
    ttft: list[float] = field(default_factory=list)
    tpot: list[float] = field(default_factory=list)
    counts: Counts = NOTHING
    num_tokens: int = 0
    num_refused: int = 0


@dataclass(slots=True)
class _WorkerBucket:
    steps_p50: list[tuple[float, float]] = field(default_factory=list)
    steps_p99: list[tuple[float, float]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    kv: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)


class Bucket:
    """What happened from `start` to `start + POINT_S`."""

    def __init__(self, start: float) -> None:
        self.start = start
        self._classes: dict[Judged, _ClassBucket] = {}
        self._workers: dict[str, _WorkerBucket] = {}
        self._waiting: tuple[float, str, dict[str, int]] = (-math.inf, "", {})

    def _class(self, one: ClassPolicy) -> _ClassBucket:
        return self._classes.setdefault((one.id, objectives_of(one)), _ClassBucket())

    def add_first_token(self, sample: LatencySample, one: ClassPolicy) -> None:
        if sample.ttft_s is not None:
            self._class(one).ttft.append(sample.ttft_s)

    def add_finished(self, sample: LatencySample, one: ClassPolicy) -> None:
        bucket = self._class(one)
        if sample.tpot_s is not None:
            bucket.tpot.append(sample.tpot_s)
        if counts := judged(sample, one):
            bucket.counts = bucket.counts.plus(counts)

    def add_gateway(self, message: GatewayTelemetry, resolve: Resolve) -> None:
        for class_id, num in message.refused.items():
            if one := resolve(class_id):
                self._class(one).num_refused += num

    def add_worker(self, message: WorkerTelemetry, resolve: Resolve) -> None:
        for class_id, num in message.num_generated_tokens.items():
            if one := resolve(class_id):
                self._class(one).num_tokens += num
        self._add_figures(self._workers.setdefault(message.worker, _WorkerBucket()), message)
        if (message.at, message.worker) > self._waiting[:2]:
            waiting = {load.class_id: load.num_waiting for load in message.classes}
            self._waiting = (message.at, message.worker, waiting)

    @staticmethod
    def _add_figures(bucket: _WorkerBucket, message: WorkerTelemetry) -> None:
        if message.num_steps and message.step_p50_s is not None:
            bucket.steps_p50.append((message.step_p50_s, message.num_steps))
        if message.num_steps and message.step_p99_s is not None:
            bucket.steps_p99.append((message.step_p99_s, message.num_steps))
        bucket.limits.append(message.batch_limit)
        bucket.running.append(message.num_running)
        bucket.kv.append(kv_share(message))
        if message.device.busy is not None:
            bucket.busy.append(message.device.busy)

    def point(self) -> Point:
        """The interval on the charts, at its end."""
        workers = self._workers.values()
        return Point(
            at=self.start + POINT_S,
            ttft=self._percentiles(lambda one: one.ttft),
            tpot=self._percentiles(lambda one: one.tpot),
            tokens_per_s=self._tokens_per_s(),
            waiting=dict(sorted(self._waiting[2].items())),
            step_p50_s=weighted_median(pair for worker in workers for pair in worker.steps_p50),
            step_p99_s=weighted_median(pair for worker in workers for pair in worker.steps_p99),
            batch_limit=_mean(worker.limits[-1] for worker in workers),
            num_running=_mean(fmean(worker.running) for worker in workers),
            kv_share={id_: worker.kv[-1] for id_, worker in sorted(self._workers.items())},
            busy={id_: fmean(one.busy) for id_, one in sorted(self._workers.items()) if one.busy},
        )

    def _tokens_per_s(self) -> dict[str, float]:
        num: dict[str, int] = {}
        for (class_id, _), one in sorted(self._classes.items()):
            num[class_id] = num.get(class_id, 0) + one.num_tokens
        return {class_id: total / POINT_S for class_id, total in num.items()}

    def _percentiles(self, of: Callable[[_ClassBucket], list[float]]) -> dict[str, Percentiles]:
        samples: dict[str, list[float]] = {}
        for (class_id, _), one in sorted(self._classes.items()):
            samples.setdefault(class_id, []).extend(of(one))
        return {class_id: percentiles(sorted(known)) for class_id, known in samples.items() if known}

    def rollup(self) -> Rollup:
        """The interval as it is stored."""
        classes = tuple(
            ClassRollup(
                class_id=class_id,
                objectives=objectives,
                counts=one.counts,
                ttft=sketch_of(one.ttft),
                tpot=sketch_of(one.tpot),
                num_tokens=one.num_tokens,
                num_refused=one.num_refused,
            )
            for (class_id, objectives), one in sorted(self._classes.items())
        )
        return Rollup(started_at=self.start, classes=classes, point=self.point())

    def ended(self) -> dict[Judged, Ended]:
        """The requests that ended, by class and what they were judged by."""
        return {key: Ended(*one.counts.joint, self.start) for key, one in self._classes.items()}


def kv_share(message: WorkerTelemetry) -> float:
    """The used share of a worker's KV cache."""
    return message.num_used_blocks / message.num_blocks if message.num_blocks else 0.0


def _mean(values: Iterator[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
