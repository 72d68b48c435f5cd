"""An imagined fleet that speaks as gateways and workers do, for developing the Live page and for its tests.

Deterministic: a seed and the instants asked for decide everything. No scheduler decides here; waiting times
are drawn from distributions that a state shapes. `calm`: all promises kept. `fault`: high's first tokens come
late. `silent`: as calm, and one worker stops speaking. `empty`: workers without requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

from scheduler_worker.core.policy import Policy, check_policy
from scheduler_worker.protocol.keys import WORKER_LEASE_S
from scheduler_worker.protocol.messages import (
    ClassLoad,
    Device,
    EventRecord,
    GatewayTelemetry,
    LatencySample,
    RunningRow,
    WorkerInfo,
    WorkerTelemetry,
)

State = Literal["calm", "fault", "silent", "empty"]
STATES: Final[tuple[State, ...]] = ("calm", "fault", "silent", "empty")

INTERVAL_S: Final = 0.25
SILENT_AFTER_S: Final = 8.0
NUM_SLOTS: Final = 64
NUM_BLOCKS: Final = 26_000
BLOCK_SIZE: Final = 16
WORKERS: Final = ("node1-gpu0", "node1-gpu1", "node2-gpu0", "node2-gpu1")
GATEWAYS: Final = ("web-1", "web-2")
SILENT_WORKER: Final = "node2-gpu0"
TENANTS: Final = {
    "high": ("northwind", "harbor-chat", "medline"),
    "normal": ("lumen-docs", "kestrel", "paperplane"),
    "low": ("atlas-research", "nightly-eval"),
}
DOCUMENT: Final[dict[str, Any]] = {
    "classes": [
        {
            "id": "high",
            "rank": 0,
            "weight": 60,
            "slo": {"ttft_s": 0.8, "tpot_s": 0.04, "target": 0.99},
            "max_wait_s": 2.0,
            "preemption": {"preemptible": False},
        },
        {
            "id": "normal",
            "rank": 1,
            "weight": 30,
            "slo": {"ttft_s": 3.0, "tpot_s": 0.06, "target": 0.95},
            "max_wait_s": 15.0,
            "preemption": {"preemptible": False},
        },
        {
            "id": "low",
            "rank": 2,
            "weight": 10,
            "slo": {"ttft_s": 30.0, "tpot_s": 0.12, "target": 0.95},
            "max_wait_s": 60.0,
        },
    ],
    "batch_limit": {"itl_target_s": 0.04},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How one class behaves: arrivals per second, and medians in seconds (σ of the logarithm: 0.45 and
    0.12)."""

    arrivals_per_s: float
    ttft_s: float
    tpot_s: float
    num_prompt_tokens: int
    num_output_tokens: int


CALM: Final = {
    "high": Shape(14.0, 0.21, 0.022, 700, 200),
    "normal": Shape(9.0, 0.72, 0.025, 1_100, 260),
    "low": Shape(3.0, 6.2, 0.036, 2_000, 200),
}
FAULT: Final = {
    "high": Shape(14.0, 0.40, 0.024, 700, 200),
    "normal": Shape(9.0, 1.10, 0.028, 6_000, 260),
    "low": Shape(3.0, 11.0, 0.041, 2_000, 200),
}


@dataclass(slots=True)
class _Request:
    request_id: str
    class_id: str
    tenant: str
    arrived_at: float
    ttft_s: float
    tpot_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    worker: str
    gateway: str
    objective_ttft_s: float
    objective_tpot_s: float
    parked_at: float | None = None
    emitted: int = 0

    @property
    def first_token_at(self) -> float:
        return self.arrived_at + self.ttft_s

    @property
    def starts_at(self) -> float:
        return self.first_token_at - min(0.3 * self.ttft_s, 0.15)

    @property
    def ends_at(self) -> float:
        return self.first_token_at + self.tpot_s * (self.num_output_tokens - 1)

    def generated(self, now: float) -> int:
        if now < self.first_token_at:
            return 0
        return min(self.num_output_tokens, 1 + int((now - self.first_token_at) / self.tpot_s))


@dataclass(slots=True)
class _Worker:
    name: str
    limit: int = NUM_SLOTS
    sequence: int = 0
    energy_j: float = 0.0
    service: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CALM, 0.0))


class FakeFleet:
    """Four workers, two gateways, three classes. Call `advance` at rising instants."""

    def __init__(self, state: State, started_at: float, fault_at: float | None = None, seed: int = 7) -> None:
        self.state: State = state
        self.fault_at = math.inf if state != "fault" else (started_at if fault_at is None else fault_at)
        self.silent_at = started_at + SILENT_AFTER_S if state == "silent" else math.inf
        self.policy: Policy = check_policy(DOCUMENT)
        self.version = 41
        self._random = Random(seed)
        self._now = self._started_at = started_at
        self._requests: list[_Request] = []
        self._workers = [_Worker(name) for name in WORKERS]
        self._sequence = 0
        self._number = 0
        self._events: dict[str, list[EventRecord]] = {}

    def infos(self) -> dict[str, WorkerInfo]:
        """What each worker announces under its own key."""
        return {name: self._info(name) for name in WORKERS}

    def _info(self, name: str) -> WorkerInfo:
        return WorkerInfo(
            worker=name,
            pool="default",
            model="llama-3.1-8b",
            started_at=self._started_at,
            num_slots=NUM_SLOTS,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_model_len=8192,
            policy_version=self.version,
        )

    def leases(self, now: float) -> dict[str, float]:
        """When each worker's lease ends: the silent one's was renewed for the last time when it last
        spoke."""
        ends = dict.fromkeys(WORKERS, now + WORKER_LEASE_S)
        if now >= self.silent_at:
            ends[SILENT_WORKER] = self.silent_at + WORKER_LEASE_S
        return ends

    def advance(self, now: float) -> Iterator[GatewayTelemetry | WorkerTelemetry]:
        """Everything the fleet says at `now` about the time since the last call."""
        before, self._now = self._now, now
        self._sequence += 1
        self._events = {}
        if self.state != "empty":
            self._arrive(before, now)
            self._decide(before, now)
        for gateway in GATEWAYS:
            yield self._gateway(gateway, before, now)
        for worker in self._workers:
            if worker.name != SILENT_WORKER or now < self.silent_at:
                yield self._worker(worker, before, now)
        self._requests = [one for one in self._requests if one.ends_at > now]

    def _shapes(self, now: float) -> dict[str, Shape]:
        return FAULT if now >= self.fault_at else CALM

    def _arrive(self, before: float, now: float) -> None:
        for class_id, shape in self._shapes(now).items():
            at = before + self._random.expovariate(shape.arrivals_per_s)
            while at < now:
                self._requests.append(self._request(class_id, shape, at))
                at += self._random.expovariate(shape.arrivals_per_s)

    def _request(self, class_id: str, shape: Shape, at: float) -> _Request:
        draw, slo = self._random, self.policy.find(class_id).slo
        self._number += 1
        alive = [name for name in WORKERS if name != SILENT_WORKER or at < self.silent_at]
        return _Request(
            request_id=f"{draw.getrandbits(40):010x}",
            class_id=class_id,
            tenant=draw.choice(TENANTS[class_id]),
            arrived_at=at,
            ttft_s=shape.ttft_s * draw.lognormvariate(0, 0.45),
            tpot_s=shape.tpot_s * draw.lognormvariate(0, 0.12),
            num_prompt_tokens=max(8, int(shape.num_prompt_tokens * draw.lognormvariate(0, 0.4))),
            num_output_tokens=max(2, int(shape.num_output_tokens * draw.lognormvariate(0, 0.5))),
            worker=draw.choice(alive),
            gateway=draw.choice(GATEWAYS),
            objective_ttft_s=slo.ttft_s,
            objective_tpot_s=slo.tpot_s,
        )

    # Decisions

    def _decide(self, before: float, now: float) -> None:
        for one in self._requests:
            if before <= one.starts_at < now:
                self._schedule(one)
            if one.class_id == "low" and one.parked_at is None and self._may_park(one, now):
                self._park(one, now)
            elif one.parked_at is not None and now - one.parked_at > 4:
                self._resume(one, now)
        if before < self.fault_at + 20 and now >= self.fault_at:
            self._shrink(now)

    def _say(
        self, worker: str, kind: str, reason: str, one: _Request | None, at: float, **numbers: Any
    ) -> None:
        event = EventRecord(
            at=at,
            kind=kind,
            reason=reason,
            request_id=one.request_id if one else "",
            class_id=one.class_id if one else "",
            tenant=one.tenant if one else "",
            numbers=numbers,
        )
        self._events.setdefault(worker, []).append(event)

    def _schedule(self, one: _Request) -> None:
        wait_s = one.starts_at - one.arrived_at
        left_s = one.objective_ttft_s - wait_s - 0.1
        rescue = 0 < left_s < 0.1 and one.class_id == "high"
        reason = "rescue" if rescue else "turn"
        self._say(one.worker, "scheduled", reason, one, one.starts_at, left_s=left_s, wait_s=wait_s)
        if one.ttft_s > one.objective_ttft_s and one.class_id == "high" and one.starts_at >= self.fault_at:
            self._refuse_to_yield(one)

    def _refuse_to_yield(self, urgent: _Request) -> None:
        at, worker = urgent.starts_at - 0.1, urgent.worker
        num_rows = sum(one.class_id == "normal" and one.worker == worker for one in self._requests)
        self._say(worker, "not_preempted", "class_may_not_yield", urgent, at, left_s=0.012, num_rows=num_rows)
        missing = 12 + self._random.randrange(60)
        self._say(worker, "out_of_blocks", "no_blocks", urgent, at, num_blocks=missing)

    def _may_park(self, one: _Request, now: float) -> bool:
        return one.first_token_at < now < one.ends_at - 2 and self._random.random() < 0.002

    def _park(self, one: _Request, now: float) -> None:
        one.parked_at = now
        by = next((other for other in reversed(self._requests) if other.class_id == "high"), None)
        by_id, by_class = (by.request_id, by.class_id) if by else ("", "")
        self._say(
            one.worker, "preempted", "preempted_by_priority", one, now,
            by=by_id, by_class=by_class, left_s=0.012, return_s=0.011, swaps=1,
        )  # fmt: skip

    def _resume(self, one: _Request, now: float) -> None:
        assert one.parked_at is not None
        parked_s = now - one.parked_at
        one.parked_at = None
        one.tpot_s += parked_s / one.num_output_tokens
        self._say(one.worker, "resumed", "swapped_in", one, now, parked_s=parked_s, num_cached_tokens=0)

    def _shrink(self, now: float) -> None:
        steps = min(3, int((now - self.fault_at) // 6))
        for worker in self._workers:
            after = NUM_SLOTS - 4 * steps
            if after < worker.limit:
                self._say(
                    worker.name, "batch_limit_changed", "itl_above_band", None, now,
                    before=worker.limit, after=after, itl_s=0.0489, target_s=0.04,
                )  # fmt: skip
                worker.limit = after

    # Messages

    def _gateway(self, name: str, before: float, now: float) -> GatewayTelemetry:
        mine = [one for one in self._requests if one.gateway == name]
        first = tuple(_sample(one, one.first_token_at) for one in mine if before <= one.first_token_at < now)
        finished = tuple(_sample(one, one.ends_at, ended=True) for one in mine if before <= one.ends_at < now)
        arrivals = [one.class_id for one in mine if before <= one.arrived_at < now]
        return GatewayTelemetry(
            gateway=name,
            pool="default",
            at=now,
            sequence=self._sequence,
            interval_s=INTERVAL_S,
            open_streams=len(mine),
            arrivals={class_id: arrivals.count(class_id) for class_id in set(arrivals)},
            output_tokens={},
            first_tokens=first,
            finished=finished,
        )

    def _worker(self, worker: _Worker, before: float, now: float) -> WorkerTelemetry:
        worker.sequence += 1
        mine = [
            one for one in self._requests if one.worker == worker.name and one.starts_at <= now < one.ends_at
        ]
        running = [one for one in mine if one.parked_at is None][: worker.limit]
        parked = [one for one in mine if one.parked_at is not None]
        tokens = self._generate(worker, running, now)
        step_s = 0.0205 + 0.0001 * len(running) + self._random.gauss(0, 0.0006)
        used = sum(_num_blocks(one, now) for one in running)
        share = min(0.985, used / NUM_BLOCKS + (0.45 if running else 0.01))
        busy = min(0.99, 0.9 + self._random.random() * 0.06) if running else 0.0
        power_w = 120 + 500 * busy
        worker.energy_j += power_w * (now - before)
        return WorkerTelemetry(
            worker=worker.name,
            pool="default",
            at=now,
            sequence=worker.sequence,
            policy_version=self.version,
            device=Device(
                kind="cuda",
                name="NVIDIA H200",
                busy=busy,
                memory_used_bytes=int(128e9),
                memory_total_bytes=int(141e9),
                power_w=power_w,
                energy_j=worker.energy_j,
            ),
            batch_limit=worker.limit,
            num_slots=NUM_SLOTS,
            num_running=len(running),
            num_blocks=NUM_BLOCKS,
            num_used_blocks=int(share * NUM_BLOCKS),
            num_steps=int((now - before) / step_s) if running else 0,
            interval_s=INTERVAL_S,
            num_prompt_tokens=sum(one.num_prompt_tokens for one in running if before <= one.starts_at < now),
            num_generated_tokens=tokens,
            batch_limit_itl_s=0.0417 if running else None,
            batch_limit_target_s=0.04,
            step_p50_s=step_s if running else None,
            step_p99_s=step_s * 1.45 if running else None,
            overhead_p50_s=0.0009 if running else None,
            rows=tuple(self._row(one, now) for one in (*running, *parked)),
            classes=tuple(self._load(worker, one.id, running, parked, now) for one in self.policy.classes),
            events=tuple(self._events.get(worker.name, ())),
        )

    def _generate(self, worker: _Worker, running: list[_Request], now: float) -> dict[str, int]:
        tokens: dict[str, int] = {}
        for one in running:
            new = one.generated(now) - one.emitted
            one.emitted += new
            tokens[one.class_id] = tokens.get(one.class_id, 0) + new
            worker.service[one.class_id] += 2.0 * new + (
                one.num_prompt_tokens if one.emitted == new > 0 else 0
            )
        return tokens

    @staticmethod
    def _row(one: _Request, now: float) -> RunningRow:
        decoding = "decode" if now >= one.first_token_at else "prefill"
        return RunningRow(
            request_id=one.request_id,
            class_id=one.class_id,
            state="parked" if one.parked_at is not None else decoding,
            arrived_at=one.arrived_at,
            num_prompt_tokens=one.num_prompt_tokens,
            num_generated_tokens=one.generated(now),
            num_blocks=_num_blocks(one, now),
            late=min(one.ttft_s, now - one.arrived_at) > one.objective_ttft_s,
            parked_at=one.parked_at,
        )

    def _load(
        self, worker: _Worker, class_id: str, running: list[_Request], parked: list[_Request], now: float
    ) -> ClassLoad:
        slo = self.policy.find(class_id).slo
        waiting = (one for one in self._requests if one.class_id == class_id and one.arrived_at <= now)
        waits = sorted((now - one.arrived_at for one in waiting if one.starts_at > now), reverse=True)
        return ClassLoad(
            class_id=class_id,
            num_waiting=len(waits),
            num_running=sum(one.class_id == class_id for one in running),
            num_parked=sum(one.class_id == class_id for one in parked),
            oldest_wait_s=waits[0] if waits else 0.0,
            num_late=sum(wait > slo.ttft_s for wait in waits),
            waits_s=tuple(waits[:64]),
            service_tokens=worker.service[class_id],
        )


def _num_blocks(one: _Request, now: float) -> int:
    return math.ceil((one.num_prompt_tokens + one.generated(now)) / BLOCK_SIZE)


def _sample(one: _Request, at: float, ended: bool = False) -> LatencySample:
    met = one.ttft_s <= one.objective_ttft_s and one.tpot_s <= one.objective_tpot_s
    return LatencySample(
        at=at,
        class_id=one.class_id,
        tenant=one.tenant,
        request_id=one.request_id,
        ttft_s=one.ttft_s,
        tpot_s=one.tpot_s if ended else None,
        e2e_s=at - one.arrived_at if ended else None,
        num_prompt_tokens=one.num_prompt_tokens,
        num_output_tokens=one.num_output_tokens if ended else 0,
        met=met if ended else None,
        outcome="succeeded" if ended else "",
    )
