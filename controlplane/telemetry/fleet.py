"""The workers: who lives, what runs where, and who got how much service.

Two workers mirror the same queue. What waits is therefore taken from one mirror, the freshest; what runs, is
parked or was served is each worker's own, and is summed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from controlplane.telemetry.promise import WINDOW_S
from controlplane.telemetry.schema import Cell, DeviceLive, WorkerLive
from controlplane.telemetry.windows import SlidingSum, weighted_median
from scheduler_worker.protocol.keys import WORKER_LEASE_S
from scheduler_worker.protocol.messages import ClassLoad, Device, RunningRow, WorkerInfo, WorkerTelemetry

RATE_S: Final = 10.0
SILENT_INTERVALS: Final = 3
SILENT_LEAST_S: Final = 2.0
"""A worker is silent after three intervals, but never sooner: a long step must not look like a death."""
GONE_AFTER_S: Final = 2 * WORKER_LEASE_S
"""Without word of its lease, a worker counts as gone after so long."""
FORGET_AFTER_S: Final = 60.0

State = Literal["live", "silent", "draining", "gone"]


@dataclass(frozen=True, slots=True)
class BusySlots:
    """All slots are busy: how many, whether it was the batch limit that left no more, and with which classes."""

    num: int
    limited: bool
    running: Mapping[str, int]


class CounterRise:
    """How much a counter that only counts up (and starts over with its process) rose within a window."""

    def __init__(self, length_s: float) -> None:
        self._rises = SlidingSum(length_s)
        self._last: float | None = None

    def read(self, at: float, count: float) -> None:
        if self._last is not None:
            self._rises.add(at, count - self._last if count >= self._last else count)
        self._last = count

    def total(self, now: float) -> float:
        return self._rises.total(now)


class WorkerView:
    """One worker, folded from its messages."""

    def __init__(self, first: WorkerTelemetry) -> None:
        self.last = first
        self.first_at = first.at
        self.energy = CounterRise(WINDOW_S)
        self.service: dict[str, CounterRise] = {}
        self.tokens = SlidingSum(WINDOW_S)
        self.recent_tokens: dict[str, SlidingSum] = {}
        self.steps: list[WorkerTelemetry] = []

    def take(self, message: WorkerTelemetry) -> None:
        if message.at >= self.last.at:
            self.last = message
            self._read_counters(message)
        if message.num_steps:
            self.steps.append(message)
        self.tokens.add(message.at, sum(message.num_generated_tokens.values()))
        for class_id, num in message.num_generated_tokens.items():
            self.recent_tokens.setdefault(class_id, SlidingSum(RATE_S)).add(message.at, num)

    def _read_counters(self, message: WorkerTelemetry) -> None:
        if message.device.energy_j is not None:
            self.energy.read(message.at, message.device.energy_j)
        for load in message.classes:
            self.service.setdefault(load.class_id, CounterRise(WINDOW_S)).read(
                message.at, load.service_tokens
            )

    def move_to(self, now: float) -> None:
        self.steps = [message for message in self.steps if message.at > now - RATE_S]

    def is_silent(self, now: float) -> bool:
        return now - self.last.at > max(SILENT_INTERVALS * self.last.interval_s, SILENT_LEAST_S)

    def tokens_per_s(self, now: float) -> float:
        # The first message's tokens came before it.
        since = self.first_at - self.last.interval_s
        return sum(one.rate(now, since) for one in self.recent_tokens.values())

    def joules_per_1k_tokens(self, now: float) -> float | None:
        joules, tokens = self.energy.total(now), self.tokens.total(now)
        return joules / tokens * 1000 if joules and tokens else None


class Fleet:
    """All workers of a pool."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}
        self._infos: Mapping[str, WorkerInfo] = {}
        self._leases: Mapping[str, float] | None = None

    def take(self, message: WorkerTelemetry) -> None:
        view = self._workers.get(message.worker)
        if view is None:
            view = self._workers[message.worker] = WorkerView(message)
        view.take(message)

    def set_known(self, infos: Mapping[str, WorkerInfo], leases: Mapping[str, float]) -> None:
        """What the workers announced, and when their leases end."""
        self._infos, self._leases = infos, leases

    def move_to(self, now: float) -> None:
        for worker, view in list(self._workers.items()):
            view.move_to(now)
            if now - view.last.at > FORGET_AFTER_S:
                del self._workers[worker]

    def model(self) -> str:
        """The name of the model that the workers run: the last part of its directory or hub id."""
        return next((info.model.rstrip("/").rpartition("/")[2] for info in self._infos.values()), "")

    def state(self, view: WorkerView, now: float) -> State:
        worker = view.last.worker
        if view.is_silent(now):
            return "gone" if self._lease_is_over(view, now) else "silent"
        info = self._infos.get(worker)
        return "draining" if info is not None and info.draining else "live"

    def _lease_is_over(self, view: WorkerView, now: float) -> bool:
        if self._leases is None:
            return now - view.last.at > GONE_AFTER_S
        return self._leases.get(view.last.worker, 0.0) <= now

    def present(self, now: float) -> list[WorkerView]:
        """The workers that are not gone, by id."""
        views = (self._workers[worker] for worker in sorted(self._workers))
        return [view for view in views if self.state(view, now) != "gone"]

    def busy_slots(self, now: float) -> BusySlots | None:
        """What fills the workers that take work, if each of them is full."""
        lasts = self.taking_work(now)
        if not lasts or any(last.num_running < _num_usable(last) for last in lasts):
            return None
        rows = (row for last in lasts for row in last.rows if row.state != "parked")
        return BusySlots(
            num=sum(last.num_running for last in lasts),
            limited=any(last.batch_limit < last.num_slots for last in lasts),
            running=Counter(row.class_id for row in rows),
        )

    def taking_work(self, now: float) -> list[WorkerTelemetry]:
        """The last words of the workers that take requests."""
        return [view.last for view in self.present(now) if self.state(view, now) == "live"]

    def slowest(self, now: float) -> WorkerLive | None:
        """The live worker whose median step of the last 10 s is the longest; None without steps."""
        known = [one for one in self.workers(now) if one.state == "live" and one.step_p50_s is not None]
        return max(known, key=lambda one: (one.step_p50_s or 0.0, one.id), default=None)

    def heard_at(self) -> float | None:
        return max((view.last.at for view in self._workers.values()), default=None)

    def devices_at(self) -> float | None:
        return max((view.last.at for view in self._workers.values() if _says(view.last.device)), default=None)

    def mirror(self, now: float) -> dict[str, ClassLoad]:
        """The queue as the freshest mirror has it, by class; of no worker's when there is none."""
        views = self.present(now) or list(self._workers.values())
        freshest = max(views, key=lambda view: (view.last.at, view.last.worker), default=None)
        return {} if freshest is None else {load.class_id: load for load in freshest.last.classes}

    def service(self, now: float) -> dict[str, float]:
        """Cost-weighted service of the window by class, all workers together."""
        served: dict[str, float] = {}
        for view in self._workers.values():
            for class_id, rise in view.service.items():
                served[class_id] = served.get(class_id, 0.0) + rise.total(now)
        return served

    def tokens_per_s(self, now: float) -> dict[str, float]:
        """Tokens generated per second by class over the last 10 s."""
        rates: dict[str, float] = {}
        for view in self._workers.values():
            since = view.first_at - view.last.interval_s
            for class_id, one in view.recent_tokens.items():
                rates[class_id] = rates.get(class_id, 0.0) + one.rate(now, since)
        return rates

    def rows(self, now: float) -> Iterator[RunningRow]:
        for view in self.present(now):
            yield from view.last.rows

    def step_s(self, share: Literal["p50", "p99"]) -> float | None:
        """The median over the workers' recent messages, by steps, of their p50 or p99 step times."""
        return _median_s((one for view in self._workers.values() for one in view.steps), f"step_{share}_s")

    def workers(self, now: float) -> tuple[WorkerLive, ...]:
        views = (self._workers[worker] for worker in sorted(self._workers))
        return tuple(self._live(view, now) for view in views)

    def _live(self, view: WorkerView, now: float) -> WorkerLive:
        last, state = view.last, self.state(view, now)
        return WorkerLive(
            id=last.worker,
            state=state,
            seen_at=last.at,
            lease_ends_at=(self._leases or {}).get(last.worker),
            device=_device(last.device, view.joules_per_1k_tokens(now)),
            policy_version=last.policy_version,
            batch_limit=last.batch_limit,
            num_slots=last.num_slots,
            num_running=last.num_running,
            num_blocks=last.num_blocks,
            num_used_blocks=last.num_used_blocks,
            step_p50_s=_median_s(view.steps, "step_p50_s"),
            step_p99_s=_median_s(view.steps, "step_p99_s"),
            overhead_p50_s=_median_s(view.steps, "overhead_p50_s"),
            tokens_per_s=view.tokens_per_s(now),
            cells=() if state == "gone" else tuple(_cell(row) for row in last.rows),
        )


def _num_usable(last: WorkerTelemetry) -> int:
    return min(last.batch_limit, last.num_slots)


def _median_s(messages: Iterable[WorkerTelemetry], name: str) -> float | None:
    """The median of a step figure over messages, by their steps. Percentiles cannot be merged exactly."""
    times = ((getattr(message, name), message.num_steps) for message in messages)
    return weighted_median((time, num) for time, num in times if time is not None)


def _says(device: Device) -> bool:
    return any(figure is not None for figure in (device.busy, device.memory_used_bytes, device.power_w))


def _device(device: Device, joules: float | None) -> DeviceLive:
    return DeviceLive(
        kind="cuda" if device.kind == "cuda" else "cpu",
        name=device.name,
        busy=device.busy,
        memory_used_bytes=device.memory_used_bytes,
        memory_total_bytes=device.memory_total_bytes,
        power_w=device.power_w,
        energy_estimated=device.energy_estimated,
        joules_per_1k_tokens=joules,
    )


def _cell(row: RunningRow) -> Cell:
    return Cell(
        id=row.request_id,
        class_id=row.class_id,
        state=row.state,  # type: ignore[arg-type]
        late=row.late,
        arrived_at=row.arrived_at,
        num_prompt_tokens=row.num_prompt_tokens,
        num_generated_tokens=row.num_generated_tokens,
        num_blocks=row.num_blocks,
    )
