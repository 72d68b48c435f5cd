"""The whole system on loopback: `python -m bench.system --device cuda --json OUT`.

Gateways, Postgres, Valkey, Celery and one worker as the demo starts them; a model of random weights; clients in
processes of their own that stream `/v1/completions`, three classes 20/30/50, answers of exactly the asked length.

1. Capacity: a closed loop that keeps every slot busy, admission off; requests that end per second.
2. Arrivals at random (Poisson) under the shipped policy, at 0.85 and 1.5 of that capacity: what the clients see.
3. Learning, before and after each of these, since a host drifts: arrivals at several rates, those near a load next to
   it. From the first of these runs comes the cost model, from all of them at each rate what the host and the ways to
   the worker and back add to it (`bench.system_prediction`).
4. The simulator's prediction of 2 from the instants and lengths of its requests, and what was learned in 1 and 3. It
   takes some minutes, after the record is written.

Rows: `bench, engine, model, batch, value, unit, floor`, as those of `bench.engine`; `batch` is the number of slots.
`--record FILE` keeps everything that was measured; `--replay FILE` does step 4 again from it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.system_clients import LENGTHS, Clients, Run, Workload, describe
from bench.system_disk import DiskProbe
from bench.system_recording import Recording, Steps, read_recording, write_recording
from bench.system_report import compare, figures, measured_points, show, summary
from bench.system_sim import without_admission
from bench.system_stack import Stack, StackSettings
from controlplane.embedded.errors import EmbeddedServiceError
from controlplane.embedded.programs import Program
from scheduler_worker.core.policy import default_policy

LOADS = (0.85, 1.5)
LEARNING = ([0.4, 0.7, 0.9], [0.7, 0.9, 1.2, 1.6], [1.6, 1.2])  # shares of the capacity: around each load
COLD = 1 / 6  # of a learning run: in most runs the first 4 s have a pause of up to 0.1 s
CONCURRENCY = 1.5  # of the slots, in the closed loop
SWAP_BYTES = 1 << 29
FOLLOWED_S = 2.5  # workers and gateways follow a published policy within a second
_STARTED_AT = time.monotonic()


def say(line: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED_AT:6.1f}s] {line}", flush=True)


class Rows:
    """The figures as they come, and what they depend on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.rows: list[dict[str, Any]] = []
        self.environment: dict[str, Any] = {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "gateways": options.gateways,
            "celery_workers": options.celery,
            "client_processes": options.clients,
        }

    def add(self, bench: str, value: float, unit: str) -> None:
        self.rows.append(
            {
                "bench": bench,
                "engine": "tidegate",
                "model": self._options.model,
                "batch": self._options.slots,
                "value": round(value, 4),
                "unit": unit,
                "floor": None,
            }
        )

    def write(self) -> None:
        """To the file that was asked for."""
        if self._options.json:
            document = {"environment": self.environment, "rows": self.rows}
            self._options.json.write_text(json.dumps(document, indent=1) + "\n")


class Bench:
    """Measures a running system, one run after the other."""

    def __init__(self, options: argparse.Namespace, stack: Stack, rows: Rows) -> None:
        self._options, self._stack, self._rows = options, stack, rows
        self._config = json.loads((Path(options.folder) / "config.json").read_text())
        self._workload = Workload(LENGTHS[options.lengths], options.gateways)
        name, vocab_size = Path(options.folder).name, self._config["vocab_size"]
        self._queued: dict[str, list[float | None]] = {}
        self._steps: dict[str, list[Steps]] = {}
        self._clients = Clients(stack, options.data_dir, options.clients, name, vocab_size)
        self._disk = DiskProbe(options.data_dir)

    def measure(self) -> Recording:
        """Every run; what is computed from them comes later."""
        self._disk.start()
        try:
            return self._measure()
        finally:
            self._disk.stop()

    def _measure(self) -> Recording:
        policy = default_policy()
        full, capacity = self._capacity()
        self._stack.publish(policy)
        time.sleep(FOLLOWED_S)
        per_s = len(capacity.ended()) / (capacity.end_s - capacity.warm_s)
        learning, runs = [self._learn(per_s, 1)], dict[float, Run]()
        info = self._stack.worker_info()
        self._rows.environment |= {"dtype": info.dtype, "attention": info.attention_backend}
        for number, load in enumerate(LOADS, start=2):
            runs[load] = self._poisson(load, per_s)
            learning.append(self._learn(per_s, number))
        for run in runs.values():
            show([figures(measured_points(run), policy)], say)
        return Recording(
            policy=policy.model_dump_json().encode(),
            num_in_flight=2 if self._options.device == "cuda" else 1,
            num_swap_blocks=SWAP_BYTES // self._block_bytes(info.block_size),
            info=info,
            full=full,
            capacity=capacity,
            learning=learning,
            runs=runs,
            parts=self._stack.parts(),
            queued=self._queued,
            steps=self._steps,
            disk=self._disk.waits,
        )

    def _run(self, name: str, *arguments: Any) -> Run:
        run = self._clients.run(name, *arguments)
        for line in describe(run):
            say(line)
        disk_s = self._disk.longest_s(run.began_at, run.began_at + run.end_s)
        self._rows.add(f"{name}: longest wait for the disk", 1e3 * disk_s, "ms")
        say(f"  the disk took up to {1e3 * disk_s:.0f} ms for a small write")
        self._queued |= self._stack.queued(run.began_at)
        messages = self._stack.worker_telemetry(run.began_at, time.time())
        self._steps[name] = [Steps.of(one) for one in messages]
        return run

    def _capacity(self) -> tuple[list[Any], Run]:
        """Every slot busy. The worker's messages of the judged time, and the run."""
        options, seconds = self._options, self._options.capacity_seconds
        warm_s, end_s = options.warm, options.warm + seconds
        requests = self._workload.at_once(options.closed_requests, seed=1)
        run = self._run("capacity", requests, warm_s, end_s, round(CONCURRENCY * options.slots))
        if not run.ended():
            raise EmbeddedServiceError("no request ended within the judged time")
        if len(run.seen) == len(requests):
            say("  WARNING: the closed loop ran out of requests; give more by --closed-requests")
        messages = self._stack.worker_telemetry(run.began_at + warm_s, run.began_at + end_s)
        self._add_capacity(run, seconds)
        self._add_steps(messages)
        return messages, run

    def _add_capacity(self, run: Run, seconds: float) -> None:
        """Requests and tokens per second; how much of a core the gateways used for them."""
        requests_per_s = len(run.ended()) / seconds
        tokens_per_s = sum(one.num_tokens for one in run.ended()) / seconds
        webs = [share for name, share in run.cpu_share.items() if name.startswith("web-")]
        add = self._rows.add
        add("capacity", requests_per_s, "requests/s")
        add("capacity, tokens", tokens_per_s, "tokens/s")
        add("busiest gateway process", 100 * max(webs, default=0.0), "% of a core")
        add("tokens that a whole core of gateway would stream", tokens_per_s / max(sum(webs), 1e-9), "tokens/s")
        say(f"capacity {requests_per_s:.1f} requests/s, {tokens_per_s:.0f} tokens/s")

    def _add_steps(self, messages: list[Any]) -> None:
        """The worker's steps while saturated: wall time, its rows, and the device's own median."""
        steps = sum(one.num_steps for one in messages)
        if not steps:
            return
        wall_s = sum(one.interval_s for one in messages) / steps
        rows = sum(sum(one.num_generated_tokens.values()) for one in messages) / steps
        device_s = sorted(one.step_p50_s for one in messages if one.step_p50_s)[len(messages) // 2]
        self._rows.add("capacity, wall time of a step", 1e3 * wall_s, "ms/step")
        self._rows.add("capacity, device time of a step, median", 1e3 * device_s, "ms/step")
        say(f"{steps} steps of {rows:.0f} tokens: {1e3 * wall_s:.2f} ms each, the device's median {1e3 * device_s:.2f}")

    def _learn(self, per_s: float, number: int) -> Run:
        seconds, shares = self._options.learn_seconds, LEARNING[number - 1]
        rates = [(share * per_s, seconds / len(shares)) for share in shares]
        requests = self._workload.arrivals(rates, seed=1 + number)
        run = self._run(f"learning {number}", requests, COLD * seconds, seconds)
        run.shares = shares
        return run

    def _poisson(self, load: float, per_s: float) -> Run:
        options = self._options
        end_s = options.warm + options.seconds
        requests = self._workload.arrivals([(load * per_s, end_s)], seed=10 + round(100 * load))
        run = self._run(f"load {load}", requests, options.warm, end_s)
        tokens = sum(one.num_tokens for one in run.ended())
        self._rows.add(f"load {load}: offered", len(run.judged()) / options.seconds, "requests/s")
        self._rows.add(f"load {load}: tokens", tokens / options.seconds, "tokens/s")
        return run

    def _block_bytes(self, block_size: int) -> int:
        known = self._config
        head = known.get("head_dim") or known["hidden_size"] // known["num_attention_heads"]
        width = 2 * known["num_key_value_heads"] * head * known["num_hidden_layers"]
        return int(block_size * width * (2 if self._options.device == "cuda" else 4))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cpus = os.cpu_count() or 1
    add = parser.add_argument
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--model", default="1b", help="1b, 8b or tiny: random weights; else a model's folder")
    add("--seconds", type=float, default=30.0, help="measured seconds of each load (30)")
    add("--warm", type=float, default=5.0, help="seconds before them (5)")
    add("--capacity-seconds", type=float, default=10.0)
    add("--learn-seconds", type=float, default=24.0, help="of each of three runs (24)")
    add("--slots", type=int, help="rows of the batch; 256 on CUDA, 16 on a CPU")
    add("--lengths", choices=LENGTHS, help="usual on CUDA, short on a CPU")
    add("--gateways", type=int, default=max(1, min(8, cpus // 2)), help="web processes")
    add("--celery", type=int, default=1 if cpus < 8 else 2, help="Celery workers")
    add("--clients", type=int, default=max(1, min(4, cpus // 4)), help="client processes")
    add("--closed-requests", type=int, default=12_000, help="at most, for the capacity")
    add("--data-dir", type=Path, help="keep data and logs there; else they go when the run has succeeded")
    add("--json", type=Path, help="write the rows to this file as well")
    add("--record", type=Path, help="keep what was measured in this file")
    add("--replay", type=Path, help="measure nothing; compare what is in this file with the simulator")
    options = parser.parse_args()
    options.slots = options.slots or (256 if options.device == "cuda" else 16)
    options.lengths = options.lengths or ("usual" if options.device == "cuda" else "short")
    return options


def worker_env(options: argparse.Namespace) -> dict[str, str]:
    """On a CPU the gateways and clients need a core too."""
    env = {
        "TIDEGATE_DEVICE": options.device,
        "TIDEGATE_NUM_SLOTS": str(options.slots),
        "TIDEGATE_MAX_MODEL_LEN": "2048",
        "TIDEGATE_SWAP_BYTES": str(SWAP_BYTES),
    }
    if options.device == "cuda":
        return env
    num_threads = str(max(1, (os.cpu_count() or 1) - 1))
    on_cpu = {"TIDEGATE_DTYPE": "float32", "TIDEGATE_KV_BYTES": str(1 << 28), "TIDEGATE_THREADS": num_threads}
    return {**env, **on_cpu}


def measure(options: argparse.Namespace, rows: Rows) -> Recording:
    """Start the system in its folder, measure, stop it."""
    own, data_dir = Path(options.model), options.data_dir
    options.folder = str(own.resolve() if own.is_dir() else data_dir / "models" / f"random-{options.model}")
    module = ("-m", "bench.system_model", "--shape", options.model, "--device", options.device)
    writing = Program("model", (sys.executable, *module, "--out", options.folder))
    settings = StackSettings(
        data_dir, Path(options.folder), options.gateways, options.celery, worker_env(options)
    )
    stack = Stack(settings, say)
    try:
        began = time.monotonic()
        stack.start(without_admission(default_policy()), None if own.is_dir() else writing)
        rows.add("start of the whole system", time.monotonic() - began, "s")
        return Bench(options, stack, rows).measure()
    finally:
        rows.write()
        say("stopping")
        stack.stop()


def run(options: argparse.Namespace) -> None:
    """Measure, or read what was measured; then compare."""
    rows = Rows(options)
    if options.replay:
        recording = read_recording(options.replay)
    else:
        recording = measure(options, rows)
    if options.record:
        write_recording(options.record, recording)
    compare(recording, say, rows.add)
    rows.write()
    for line in summary(rows.rows):
        print(line)


def main() -> None:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # the figures so far are written
    if options.data_dir:
        options.data_dir = options.data_dir.resolve()
        options.data_dir.mkdir(parents=True, exist_ok=True)
        run(options)
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-system-", ignore_cleanup_errors=True) as folder:
        options.data_dir = Path(folder)
        options.data_dir.chmod(0o755)
        run(options)


if __name__ == "__main__":
    try:
        main()
    except EmbeddedServiceError as error:
        sys.exit(f"error: {error}")
