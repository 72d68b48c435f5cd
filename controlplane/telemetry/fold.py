"""The fold: messages of gateways and workers, and the policy, into what the Live page shows.

It reads no clock, no socket and no database. Messages may come in any order within the window; two folds that
took the same messages say the same at the same instant. A web process that follows keeps one too, so that it
can lead at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.telemetry.buckets import (
    POINT_GRACE_S,
    POINT_S,
    ROLL_UP_GRACE_S,
    Bucket,
    Judged,
    Rollup,
    start_of,
)
from controlplane.telemetry.causes import (
    BrokenHalf,
    Causes,
    gateway_restarted,
    holders,
    slots_busy,
    steps_slow,
)
from controlplane.telemetry.decisions import EventLog, Render
from controlplane.telemetry.fleet import Fleet
from controlplane.telemetry.promise import (
    METRICS,
    WINDOW_S,
    Ended,
    Metric,
    Open,
    PromiseWindow,
    add_up,
    budget_left,
    burn_rate,
    objective_of,
    objectives_of,
    replay,
)
from controlplane.telemetry.schema import ClassLive, LiveSnapshot, Point, Verdict, WorkerLive
from controlplane.telemetry.sketch import values
from controlplane.telemetry.totals import Totals
from controlplane.telemetry.waiting import Doors, waiting_view
from controlplane.telemetry.windows import SlidingSum
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.protocol.keys import GATEWAY_LEASE_S
from scheduler_worker.protocol.messages import (
    EventRecord,
    GatewayTelemetry,
    LatencySample,
    RunningRow,
    WorkerInfo,
    WorkerTelemetry,
)

REQUEST_RATE_S: Final = 60.0
START_RATE_S: Final = 30.0
RESTART_GAP_S: Final = 2.0
RESTART_WITHIN_S: Final = 60.0
GATEWAY_LEARNS_S: Final = 2.0
"""So long a gateway may still count its open requests by the objectives before."""
LONG_WAIT: Final = 0.5
"""A wait of this share of the TTFT objective is long enough to explain why the first token came late."""
HISTORY_S: Final = 3600.0
NUM_COLORS: Final = 6


@dataclass(frozen=True, slots=True)
class _Broken:
    class_id: str
    rank: int
    metric: Metric
    since: float
    burn: float
    num_late: int


class TelemetryFold:
    """What one pool's telemetry says. `render` puts an event into words."""

    def __init__(self, render: Render) -> None:
        self.totals = Totals()
        self.points: list[Point] = []
        self.fleet = Fleet()
        self.policy: Policy | None = None
        self.policy_version: int | None = None
        self._log = EventLog(render)
        self._causes = Causes(self._log)
        self._windows: dict[str, PromiseWindow] = {}
        self._colors: dict[str, int] = {}
        self._gateways: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._replaced: dict[str, str] = {}
        self._spoke: dict[str, GatewayTelemetry] = {}
        self._open: dict[float, Bucket] = {}
        self._pointed_to = -math.inf
        self._rolled_to = -math.inf
        self._restored_to = -math.inf
        self._finished = SlidingSum(REQUEST_RATE_S)
        self._met = SlidingSum(REQUEST_RATE_S)
        self._started = SlidingSum(START_RATE_S)
        self._refused: dict[str, SlidingSum] = {}
        self._heard_since: float | None = None
        self._budget: Mapping[Judged, Ended] = {}
        self._budget_to = -math.inf
        self._closed_ended: dict[float, Mapping[Judged, Ended]] = {}

    # What comes in

    def set_policy(
        self,
        version: int,
        policy: Policy,
        colors: Mapping[str, int] | None = None,
        at: float | None = None,
    ) -> None:
        """The live policy, as seen at `at`. `colors` are the classes' permanent indices; else they are numbered."""
        self.policy_version, self.policy = version, policy
        self._colors.update(colors or {})
        for one in policy.classes:
            self._colors.setdefault(one.id, len(self._colors) % NUM_COLORS)
        known = self._windows
        self._windows = {
            one.id: known[one.id].under(one, at) if one.id in known else PromiseWindow(one) for one in policy.classes
        }

    def set_workers(self, infos: Mapping[str, WorkerInfo], leases: Mapping[str, float]) -> None:
        """What the workers announced under their own keys, and when their leases end."""
        self.fleet.set_known(infos, leases)

    def set_budget(self, ended: Mapping[Judged, Ended], through: float) -> None:
        """Requests of the last 30 days that ended before `through`, by class and what they were judged by."""
        self._budget, self._budget_to = ended, through
        self._closed_ended = {start: one for start, one in self._closed_ended.items() if start >= through}

    def restore(self, rollups: Iterable[Rollup], before: float) -> None:
        """Take up history from stored intervals, oldest first, of those that began before `before`.

        Samples from before their end are ignored from then on: they are in the intervals already.
        """
        known = [one for one in rollups if one.started_at < before]
        self.points = [one.point for one in known]
        if not known:
            return
        last = known[-1].started_at + POINT_S
        self._pointed_to = self._rolled_to = self._restored_to = last
        self._heard_since = known[0].started_at
        for class_id, window in self._windows.items():
            self._restore_class(class_id, window, known, last)

    def judged_otherwise_until(self, rollups: Iterable[Rollup]) -> float:
        """The end of the last interval that holds requests judged by other objectives than today's.

        The stream's requests until then were judged already: judging them again would count them twice.
        """
        today = {one.id: objectives_of(one) for one in self.policy.classes} if self.policy else {}
        ends = (
            one.started_at + POINT_S
            for one in rollups
            for row in one.classes
            if today.get(row.class_id, row.objectives) != row.objectives
        )
        return max(ends, default=-math.inf)

    @staticmethod
    def _restore_class(class_id: str, window: PromiseWindow, known: list[Rollup], last: float) -> None:
        rows = [(one.started_at, row) for one in known for row in one.classes if row.class_id == class_id]
        judged = objectives_of(window.policy)
        others = [start for start, row in rows if row.objectives != judged]
        if others:
            window.judged_since = others[-1] + POINT_S
        # Since the objectives are what they are: earlier ones may have been the same, and others between.
        mine = [(start, row) for start, row in rows if row.objectives == judged and start >= max(others, default=0)]
        counted = [(start + POINT_S, row.counts) for start, row in mine]
        window.breakage.since = replay(counted, window.policy.slo.target)
        for start, row in mine:
            if start + POINT_S > last - WINDOW_S:
                window.restore(start + POINT_S / 2, values(row.ttft), values(row.tpot), row.counts)

    def resume(self, halves: Iterable[BrokenHalf]) -> None:
        """Take up what another process knew of broken promises: since when and why. What recovered is dropped
        when time next moves."""
        for half in halves:
            if window := self._windows.get(half.class_id):
                window.breakage.since[half.metric] = half.since
                self._causes.resume(half)

    def broken_halves(self) -> tuple[BrokenHalf, ...]:
        """The broken halves and what explains them, for the next process."""
        return self._causes.halves()

    def take(self, message: GatewayTelemetry | WorkerTelemetry) -> None:
        """Take one message of the stream."""
        self._heard_since = min(self._heard_since or math.inf, message.at - message.interval_s)
        if isinstance(message, WorkerTelemetry):
            self._take_worker(message)
        else:
            self._take_gateway(message)

    def _take_worker(self, message: WorkerTelemetry) -> None:
        self.fleet.take(message)
        if message.at >= self._restored_to:
            self._bucket(message.at).add_worker(message, self._resolve)
        self._log.take(message.worker, message.events)
        self._started.add(message.at, sum(event.kind == "scheduled" for event in message.events))
        self.totals.take_worker(message)

    def _take_gateway(self, message: GatewayTelemetry) -> None:
        known = self._began.get(message.gateway, message.at)
        self._began[message.gateway] = min(known, message.at)
        if message.at >= self._gateways.get(message.gateway, message.at):
            self._gateways[message.gateway] = message.at
            self._spoke[message.gateway] = message
        if message.at >= self._restored_to:
            self._bucket(message.at).add_gateway(message, self._resolve)
        for class_id, num in message.refused.items():
            if one := self._resolve(class_id):
                self._refused.setdefault(one.id, SlidingSum(WINDOW_S)).add(message.at, num)
        for sample in message.first_tokens:
            self._take_first_token(sample)
        for sample in message.finished:
            self._take_finished(sample)
        self._log.take(message.gateway, message.events)
        self.totals.take_gateway(message)

    def _take_first_token(self, sample: LatencySample) -> None:
        one = self._resolve(sample.class_id)
        if one is not None and sample.at >= self._restored_to:
            window = self._windows[one.id]
            window.add_first_token(sample)
            self._bucket(sample.at).add_first_token(sample, window.rules_at(sample.at))

    def _take_finished(self, sample: LatencySample) -> None:
        one = self._resolve(sample.class_id)
        if one is None or sample.at < self._restored_to:
            return
        window = self._windows[one.id]
        window.add_finished(sample)
        self._bucket(sample.at).add_finished(sample, window.rules_at(sample.at))
        self._finished.add(sample.at, 1)
        self._met.add(sample.at, bool(sample.met))

    def _resolve(self, class_id: str) -> ClassPolicy | None:
        """The class that serves an id today; None for one that the policy does not know."""
        if self.policy is None:
            return None
        try:
            return self.policy.find(class_id)
        except KeyError:
            return None

    def _bucket(self, at: float) -> Bucket:
        # What comes after its interval was stored is booked into the oldest open one, so that no request is
        # lost.
        start = max(start_of(at), self._rolled_to)
        if start not in self._open:
            self._open[start] = Bucket(start)
        return self._open[start]

    # What time does

    def tick(self, now: float) -> tuple[Point, ...]:
        """Move every window's end to `now`, about once a second; returns the points that closed."""
        self.fleet.move_to(now)
        self._log.move_to(now)
        self._log.take("", self._busy_slots(now))
        self._log.take("", self._slow_steps(now))
        self._log.take("", self._restarts())
        self._judge(now)
        return self._close_points(now)

    def _restarts(self) -> Iterator[EventRecord]:
        """Gateways that first spoke after another had fallen silent: web processes that were started again.

        Each start is a gateway of its own. Two that were lost are replaced by two.
        """
        for name, began in sorted(self._began.items(), key=lambda pair: (pair[1], pair[0])):
            away = {one: began - at for one, at in self._gateways.items() if one not in self._replaced.values()}
            lost = [one for one, away_s in away.items() if RESTART_GAP_S < away_s < RESTART_WITHIN_S]
            if lost and name not in self._replaced:
                self._replaced[name] = min(lost, key=lambda one: (away[one], one))
                yield gateway_restarted(began, away[self._replaced[name]])

    def _busy_slots(self, now: float) -> Iterator[EventRecord]:
        """Which classes wait long now because every slot is busy."""
        busy, mirror = self.fleet.busy_slots(now), self.fleet.mirror(now)
        for one in self.policy.classes if busy and self.policy else ():
            load = mirror.get(one.id)
            if busy and load and load.num_waiting and load.oldest_wait_s >= LONG_WAIT * one.slo.ttft_s:
                yield slots_busy(now, load, busy)

    def _slow_steps(self, now: float) -> Iterator[EventRecord]:
        """Which classes cannot get their tokens in time now, because every step takes longer than they promise."""
        slowest = self.fleet.slowest(now)
        for one in self.policy.classes if slowest and self.policy else ():
            if slowest and (slowest.step_p50_s or 0.0) > one.slo.tpot_s and self._runs_on(slowest, one.id):
                yield steps_slow(now, one.id, one.slo.tpot_s, slowest)

    def _runs_on(self, worker: WorkerLive, class_id: str) -> bool:
        found = (self._resolve(cell.class_id) for cell in worker.cells if cell.state == "decode")
        return any(one is not None and one.id == class_id for one in found)

    def _judge(self, now: float) -> None:
        for window in self._windows.values():
            window.open = self._open_misses(window, now)
            window.judge(now)
        self._causes.follow(((one.class_id, one.metric, one.since) for one in self._broken()), now)

    def _open_misses(self, window: PromiseWindow, now: float) -> Open:
        """What the gateways that live last said of open requests of the class, by the objectives of now."""
        class_id, since = window.policy.id, window.judged_since
        if since is not None and now < since + GATEWAY_LEARNS_S:
            return Open()
        alive = [one for one in self._spoke.values() if now - one.at <= GATEWAY_LEASE_S]
        return Open(
            num_overdue=sum(self._of_class(one.overdue, class_id) for one in alive),
            num_missed=sum(self._of_class(one.missed, class_id) for one in alive),
        )

    def _of_class(self, counts: Mapping[str, int], class_id: str) -> int:
        found = ((self._resolve(named), num) for named, num in counts.items())
        return sum(num for one, num in found if one is not None and one.id == class_id)

    def _close_points(self, now: float) -> tuple[Point, ...]:
        starts = [start for start in self._open if self._pointed_to <= start <= now - POINT_S - POINT_GRACE_S]
        closed = tuple(self._open[start].point() for start in sorted(starts))
        if closed:
            self._pointed_to = closed[-1].at
        self.points = [point for point in (*self.points, *closed) if point.at > now - HISTORY_S]
        return closed

    def close_rollups(self, now: float) -> tuple[Rollup, ...]:
        """The intervals that are complete by now, oldest first; each is returned once."""
        starts = sorted(start for start in self._open if start <= now - POINT_S - ROLL_UP_GRACE_S)
        rollups = tuple(self._close(self._open.pop(start)) for start in starts)
        if rollups:
            self._rolled_to = rollups[-1].started_at + POINT_S
        return rollups

    def _close(self, bucket: Bucket) -> Rollup:
        self._closed_ended[bucket.start] = bucket.ended()
        return bucket.rollup()

    # What comes out

    def snapshot(self, now: float, number: int) -> LiveSnapshot:
        """Everything the page shows at `now`. New points are added by each consumer, for its client."""
        self._judge(now)
        classes, workers = self._classes(now), self.fleet.workers(now)
        present = [worker for worker in workers if worker.state != "gone"]
        limits = [worker.batch_limit for worker in present]
        return LiveSnapshot(
            at=now,
            number=number,
            policy_version=self.policy_version,
            num_workers=len(present),
            num_workers_on_policy=sum(worker.policy_version == self.policy_version for worker in present),
            gateways_at=self._gateways_at(now),
            workers_at=self.fleet.heard_at(),
            devices_at=self.fleet.devices_at(),
            verdict=self._verdict(classes, len(present), now),
            classes=classes,
            workers=workers,
            tokens_per_s=sum(one.tokens_per_s for one in classes),
            goodput_rps=self._request_rate(self._met, now),
            finished_rps=self._request_rate(self._finished, now),
            step_p50_s=self.fleet.step_s("p50"),
            step_p99_s=self.fleet.step_s("p99"),
            batch_limit=sum(limits) / len(limits) if limits else None,
            num_running=sum(worker.num_running for worker in present),
            num_waiting=sum(one.waiting.num for one in classes),
            num_parked=sum(one.num_parked for one in classes),
            num_slots=sum(limits),
            limit_changes=self._log.limit_changes(),
            decisions=self._log.decisions(),
        )

    def _gateways_at(self, now: float) -> float | None:
        """The oldest word of the gateways that live: figures are as old as the source that lags."""
        alive = [at for at in self._gateways.values() if now - at <= GATEWAY_LEASE_S]
        return min(alive) if alive else max(self._gateways.values(), default=None)

    def _request_rate(self, one: SlidingSum, now: float) -> float | None:
        return one.rate(now, self._heard_since) if self._gateways else None

    def _classes(self, now: float) -> tuple[ClassLive, ...]:
        if self.policy is None:
            return ()
        context = _Context(self, now)
        return tuple(context.live(one) for one in sorted(self.policy.classes, key=lambda one: one.rank))

    def _doors(self, now: float) -> Doors:
        """What decides who starts: the workers that take requests, or those that are left."""
        taking = self.fleet.taking_work(now)
        lasts = taking or [view.last for view in self.fleet.present(now)]
        running = Counter(row.class_id for last in lasts for row in last.rows if row.state != "parked")
        return Doors(
            loads=[{load.class_id: load for load in last.classes} for last in lasts],
            takes_work=bool(taking),
            holders=holders(running) if running else "",
            starts_per_s=self._started.rate(now, self._heard_since) or None,
            step_s=self.fleet.step_s("p50"),
        )

    def _judged_in_budget(self, one: ClassPolicy, now: float) -> Ended | None:
        """Requests of the last 30 days that today's objectives judged: what is stored, the intervals since, and what
        is open and has missed them already."""
        key = (one.id, objectives_of(one))
        since = {**self._closed_ended, **{start: bucket.ended() for start, bucket in self._open.items()}}
        later = (ended for start, ended in since.items() if start >= self._budget_to)
        known = [ended[key] for ended in (self._budget, *later) if key in ended and ended[key].num]
        if missed := self._windows[one.id].open.num_missed:
            known.append(Ended(missed, missed, now))
        return add_up(known)

    # The verdict

    def _verdict(self, classes: tuple[ClassLive, ...], num_workers: int, now: float) -> Verdict:
        if not num_workers:
            return Verdict(kind="no_worker")
        if broken := self._broken():
            return self._broken_verdict(broken, now)
        busy = any(one.waiting.num or one.num_running or one.num_parked for one in classes)
        seen = any(one.ttft.num or one.tpot.num or one.num_judged for one in classes)
        return self._kept_verdict() if busy or seen else Verdict(kind="no_traffic")

    def _broken(self) -> list[_Broken]:
        """Broken halves, the one that burns its budget fastest first."""
        broken = [
            _Broken(class_id, window.policy.rank, metric, since, _burn(window), window.counts().of(metric)[1])
            for class_id, window in self._windows.items()
            for metric, since in window.breakage.since.items()
        ]
        return sorted(broken, key=lambda one: (-one.burn, one.rank, -one.num_late, one.metric != "ttft"))

    def _broken_verdict(self, broken: list[_Broken], now: float) -> Verdict:
        assert self.policy is not None
        worst = broken[0]
        num, num_late = self._windows[worst.class_id].counts().joint
        where = (worst.class_id, worst.metric)
        return Verdict(
            kind="broken",
            class_id=worst.class_id,
            metric=worst.metric,
            since=worst.since,
            num_late=num_late,
            num_requests=num,
            attainment=1 - num_late / num if num else None,
            num_more=len(broken) - 1,
            causes=self._causes.told(*where, now),
            rule_path=self._causes.rule_path(*where, self.policy),
        )

    def _kept_verdict(self) -> Verdict:
        """Kept; names the half that is nearest to being broken."""
        pairs = [(window, metric) for window in self._windows.values() for metric in METRICS]
        window, metric = max(pairs, key=lambda pair: pair[0].closeness(pair[1]))
        if window.closeness(metric)[0] == -math.inf:
            return Verdict(kind="kept")
        state = window.state(metric)
        return Verdict(
            kind="kept",
            class_id=window.policy.id,
            metric=metric,
            num_late=state.num_late,
            num_requests=state.num_requests,
            attainment=state.attainment,
        )


def _budget_since(ended: Ended | None, judged_since: float | None) -> float | None:
    """When the budget's first request ended, as an interval says; to the second where the objectives just changed."""
    if ended is None:
        return None
    is_same = judged_since is not None and ended.since > judged_since - POINT_S
    return judged_since if is_same else ended.since


def _burn(window: PromiseWindow) -> float:
    return burn_rate(*window.counts().joint, window.policy.slo.target) or 0.0


class _Context:
    """What all classes of one snapshot share."""

    def __init__(self, fold: TelemetryFold, now: float) -> None:
        assert fold.policy is not None
        self.fold, self.now, self.policy = fold, now, fold.policy
        self.mirror = fold.fleet.mirror(now)
        self.doors = fold._doors(now)
        self.service = fold.fleet.service(now)
        self.tokens = fold.fleet.tokens_per_s(now)
        self.weights = sum(one.weight for one in fold.policy.classes)
        self.rows: dict[str, list[RunningRow]] = {}
        for row in fold.fleet.rows(now):
            if one := fold._resolve(row.class_id):
                self.rows.setdefault(one.id, []).append(row)

    def live(self, one: ClassPolicy) -> ClassLive:
        fold, window, target = self.fold, self.fold._windows[one.id], one.slo.target
        counts, served = window.counts(), sum(self.service.values())
        rows = self.rows.get(one.id, [])
        parked = [row for row in rows if row.state == "parked"]
        ended = fold._judged_in_budget(one, self.now)
        judged_since = window.begins_at(self.now)
        times = [self.now - row.parked_at for row in parked if row.parked_at is not None]
        return ClassLive(
            id=one.id,
            rank=one.rank,
            color=fold._colors[one.id],
            weight=one.weight,
            objective=objective_of(one),
            window_s=WINDOW_S,
            ttft=window.ttft.percentiles(),
            tpot=window.tpot.percentiles(),
            ttft_state=window.state("ttft"),
            tpot_state=window.state("tpot"),
            attainment=1 - counts.num_late / counts.num if counts.num else None,
            num_judged=counts.num,
            num_late=counts.num_late,
            num_overdue=window.open.num_overdue,
            budget_left=budget_left(ended.num, ended.num_late, target) if ended else None,
            budget_since=_budget_since(ended, judged_since),
            burn_rate=burn_rate(*counts.joint, target),
            judged_since=judged_since,
            share_due=one.weight / self.weights,
            share_got=self.service.get(one.id, 0.0) / served if served else None,
            waiting=waiting_view(self.mirror.get(one.id), self.doors),
            tokens_per_s=self.tokens.get(one.id, 0.0),
            num_refused=int(fold._refused[one.id].total(self.now)) if one.id in fold._refused else 0,
            preemptible=one.preemption.preemptible,
            num_running=len(rows) - len(parked),
            num_parked=len(parked),
            num_parked_by_memory=sum(row.by_memory for row in parked),
            longest_parked_s=max(times, default=None),
        )
