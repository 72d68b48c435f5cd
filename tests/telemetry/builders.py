"""Short ways to write telemetry messages. Instants are seconds after `T0`, a multiple of 300 s and of 3600
s."""

from __future__ import annotations

from typing import Any

from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.schema import ClassLive, LiveSnapshot, WorkerLive
from scheduler_worker.core.policy import Policy, check_policy
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

T0 = 1_800_000_000.0

CLASSES: list[dict[str, Any]] = [
    {"id": "high", "rank": 0, "weight": 70, "slo": {"ttft_s": 0.1, "tpot_s": 0.02, "target": 0.99}},
    {"id": "low", "rank": 1, "weight": 30, "slo": {"ttft_s": 1.0, "tpot_s": 0.1, "target": 0.9}},
]


def policy(*classes: dict[str, Any], **sections: Any) -> Policy:
    return check_policy({"classes": classes or CLASSES, **sections})


def words(event: EventRecord) -> str:
    return f"{event.reason} of {event.request_id}"


def fold(live: Policy | None = None) -> TelemetryFold:
    one = TelemetryFold(words)
    one.set_policy(41, live or policy())
    return one


def sample(at: float, class_id: str = "high", **fields: Any) -> LatencySample:
    fields = {"tenant": "acme", "request_id": f"{class_id}-{at}", **fields}
    return LatencySample(at=T0 + at, class_id=class_id, **fields)


def first(at: float, ttft_s: float, class_id: str = "high", **fields: Any) -> LatencySample:
    return sample(at, class_id, ttft_s=ttft_s, **fields)


def ended(
    at: float, ttft_s: float = 0.05, tpot_s: float | None = 0.01, class_id: str = "high", **fields: Any
) -> LatencySample:
    fields = {"met": True, "outcome": "succeeded", "ttft_s": ttft_s, "tpot_s": tpot_s, **fields}
    return sample(at, class_id, **fields)


def gateway(at: float, name: str = "web-1", **fields: Any) -> GatewayTelemetry:
    fields = {"pool": "default", "sequence": 1, "interval_s": 0.25, "open_streams": 0, **fields}
    return GatewayTelemetry(gateway=name, at=T0 + at, **fields)


def worker(at: float, name: str = "gpu0", **fields: Any) -> WorkerTelemetry:
    usual: dict[str, Any] = {
        "pool": "default",
        "sequence": 1,
        "policy_version": 41,
        "device": Device(kind="cpu", name="test"),
        "batch_limit": 8,
        "num_slots": 16,
        "num_running": 0,
        "num_blocks": 100,
        "num_used_blocks": 0,
        "num_steps": 0,
        "interval_s": 0.25,
        "num_prompt_tokens": 0,
        "num_generated_tokens": {},
    }
    return WorkerTelemetry(worker=name, at=T0 + at, **{**usual, **fields})


def load(class_id: str = "high", num_waiting: int = 0, **fields: Any) -> ClassLoad:
    return ClassLoad(
        class_id=class_id, num_waiting=num_waiting, **{"num_running": 0, "num_parked": 0, **fields}
    )


def row(request_id: str, class_id: str = "high", state: str = "decode", **fields: Any) -> RunningRow:
    usual = {"arrived_at": T0, "num_prompt_tokens": 10, "num_generated_tokens": 5, "num_blocks": 1}
    return RunningRow(request_id=request_id, class_id=class_id, state=state, **{**usual, **fields})


def event(at: float, kind: str, reason: str, class_id: str = "high", **fields: Any) -> EventRecord:
    fields = {"request_id": f"r{at}", **fields}
    return EventRecord(at=T0 + at, kind=kind, reason=reason, class_id=class_id, **fields)


def info(name: str = "gpu0", **fields: Any) -> WorkerInfo:
    usual = {"pool": "default", "model": "tiny", "started_at": T0, "num_slots": 16, "num_blocks": 100}
    return WorkerInfo(worker=name, **{**usual, "block_size": 16, "max_model_len": 512, **fields})


def seen(one: TelemetryFold, at: float) -> LiveSnapshot:
    return one.snapshot(T0 + at, number=1)


def class_of(snapshot: LiveSnapshot, class_id: str = "high") -> ClassLive:
    return next(one for one in snapshot.classes if one.id == class_id)


def worker_of(snapshot: LiveSnapshot, name: str = "gpu0") -> WorkerLive:
    return next(one for one in snapshot.workers if one.id == name)
