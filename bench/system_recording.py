"""What a run of `bench.system` keeps, and its file: MessagePack, compressed (a plain one is read as well)."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec

from bench.system_clients import Run
from scheduler_worker.protocol.messages import WorkerInfo, WorkerTelemetry

GZIP = b"\x1f\x8b"
LEVEL = 6  # 9 takes four times as long for one per cent less
ONCE = [0.4, 0.7, 0.9, 1.2, 1.6]  # what recordings of one learning run do not say: its shares


class Steps(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One of the worker's messages without its rows: sums over the `num_steps` steps of `interval_s`, and the state
    at their end. `num_context` and `num_prompt_running` are tokens of what ran, `num_waiting` is by class."""

    at: float
    interval_s: float
    num_steps: int
    num_generated: int
    num_prompt: int
    num_running: int
    num_slots: int
    batch_limit: int
    num_context: int
    num_prompt_running: int
    num_waiting: dict[str, int]
    step_p50_s: float | None
    step_p99_s: float | None
    overhead_p50_s: float | None

    @classmethod
    def of(cls, message: WorkerTelemetry) -> Steps:
        rows = [one for one in message.rows if one.state != "parked"]
        return cls(
            at=message.at,
            interval_s=message.interval_s,
            num_steps=message.num_steps,
            num_generated=sum(message.num_generated_tokens.values()),
            num_prompt=message.num_prompt_tokens,
            num_running=message.num_running,
            num_slots=message.num_slots,
            batch_limit=message.batch_limit,
            num_context=sum(one.num_prompt_tokens + one.num_generated_tokens for one in rows),
            num_prompt_running=sum(one.num_prompt_tokens for one in rows),
            num_waiting={one.class_id: one.num_waiting for one in message.classes},
            step_p50_s=message.step_p50_s,
            step_p99_s=message.step_p99_s,
            overhead_p50_s=message.overhead_p50_s,
        )


class Recording(msgspec.Struct):
    """Everything measured, enough to do the rest again later.

    `full`: the worker's messages while every slot was busy; `learning`: one run before each load, and one at the end;
    `info`: what the worker published after the first of them; `runs` by load; by request id: `parts`, the gateway's
    and the worker's own times (`PARTS`), and `queued`, after how long it was queued and how long after that its claim
    came; `steps` of the worker, by the run's name; `disk`, how long it made a small write wait (`DiskProbe.waits`).
    """

    policy: bytes
    num_in_flight: int
    num_swap_blocks: int
    info: WorkerInfo
    full: list[WorkerTelemetry]
    capacity: Run
    learning: list[Run]
    runs: dict[float, Run]
    parts: dict[str, list[float | None]]
    queued: dict[str, list[float | None]] = {}
    steps: dict[str, list[Steps]] = {}
    disk: list[tuple[float, float]] = []


def write_recording(path: Path, recording: Recording) -> None:
    """Compressed: half the size, and 16 MiB are soon reached."""
    path.write_bytes(gzip.compress(msgspec.msgpack.encode(recording), LEVEL))


def read_recording(path: Path) -> Recording:
    """Of a file that is compressed or plain, with one learning run or with several."""
    data = path.read_bytes()
    known = msgspec.msgpack.decode(gzip.decompress(data) if data.startswith(GZIP) else data)
    if isinstance(known["learning"], dict):
        known["learning"] = [known["learning"] | {"shares": ONCE}]
    return msgspec.convert(known, Recording)
