"""The whole system on loopback: `python -m bench.system --device cuda --json OUT`.

Gateways, Postgres, Valkey, Celery and one worker as the demo starts them; a model of random weights; clients in
processes of their own that stream `/v1/completions`, three classes 20/30/50, answers of exactly the asked length.

1. Capacity: a closed loop that keeps every slot busy, admission off; requests that end per second.
2. Learning: arrivals at changing rates under the shipped policy. From this run and the first come the cost model, the
   time between steps, and what the way to the worker and back adds to a first token.
3. Arrivals at random (Poisson), at 0.85 and 1.5 of that capacity: what the clients see.
4. The simulator's prediction of 3 from the instants and lengths of its requests, and what was learned in 1 and 2.

Rows: `bench, engine, model, batch, value, unit, floor`, as those of `bench.engine`; `batch` is the number of slots.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.system_load import Job, Planned, Seen
from bench.system_sim import Fitted, fit, predict, without_admission
from bench.system_stack import Stack, StackSettings
from controlplane.embedded.errors import EmbeddedServiceError
from controlplane.embedded.programs import Program
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.sim.report import nearest_rank

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"high": 0.2, "medium": 0.3, "low": 0.5}
LOADS = (0.85, 1.5)
LEARNING_RATES = (0.4, 0.9, 0.6, 1.1)
POINTS = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
TTFT_GOALS_MS = {0.85: {"high": 80, "medium": 250, "low": 450}, 1.5: {"high": 100}}
SWAP_BYTES = 1 << 29
START_IN_S = 1.0
FOLLOWED_S = 2.5  # workers and gateways follow a published policy within a second
MAX_LAG_S = 0.01


class Lengths(NamedTuple):
    """Prompts are uniform; answers are log-normal with this mean and deviation of the logarithm, cut."""

    prompt: tuple[int, int]
    log_mean: float
    log_deviation: float
    output: tuple[int, int]

    def draw(self, r: random.Random) -> tuple[int, int]:
        num_prompt = r.randint(*self.prompt)
        num_output = int(r.lognormvariate(self.log_mean, self.log_deviation))
        return num_prompt, min(self.output[1], max(self.output[0], num_output))


LENGTHS = {
    "usual": Lengths((50, 300), 4.3, 0.9, (8, 512)),  # those of bench.engine's saturated workloads
    "short": Lengths((10, 60), 2.5, 0.7, (4, 48)),
}


def say(line: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED_AT:6.1f}s] {line}", flush=True)


_STARTED_AT = time.monotonic()


@dataclass
class Run:
    """One measured run. Answers are judged from `warm_s` to `end_s`, by the instant of sending."""

    name: str
    requests: list[Planned]
    seen: list[Seen]
    warm_s: float
    end_s: float
    began_at: float
    cpu_share: dict[str, float] = field(default_factory=dict)

    def judged(self) -> list[Seen]:
        return [one for one in self.seen if self.warm_s <= one.sent_s < self.end_s]

    def class_of(self) -> dict[int, str]:
        return {one.index: one.class_id for one in self.requests}


def arrivals(
    rates: Iterable[tuple[float, float]], lengths: Lengths, num_gateways: int, seed: int
) -> list[Planned]:
    """Poisson arrivals: for each (requests/s, seconds) in turn; classes, lengths and gateways at random."""
    r, planned = random.Random(f"arrivals-{seed}"), list[Planned]()
    began_s = 0.0
    for rate, seconds in rates:
        at_s = began_s
        while (at_s := at_s + r.expovariate(rate)) < began_s + seconds:
            planned.append(_planned(len(planned), at_s, lengths, num_gateways, seed, r))
        began_s += seconds
    return planned


def at_once(num: int, lengths: Lengths, num_gateways: int, seed: int) -> list[Planned]:
    """Requests for a closed loop."""
    r = random.Random(f"closed-{seed}")
    return [_planned(index, 0.0, lengths, num_gateways, seed, r) for index in range(num)]


def _planned(
    place: int, at_s: float, lengths: Lengths, num_gateways: int, seed: int, r: random.Random
) -> Planned:
    """The index is also the seed of the prompt: no two runs share a prompt, or its blocks would be cached."""
    class_id = r.choices(list(CLASSES), list(CLASSES.values()))[0]
    return Planned(seed * 10_000_000 + place, at_s, place % num_gateways, class_id, *lengths.draw(r))


class Clients:
    """Load from several processes."""

    def __init__(self, stack: Stack, folder: Path, num_processes: int, model: str, vocab_size: int) -> None:
        self._stack, self._folder, self._num = stack, folder, num_processes
        self._model, self._vocab_size = model, vocab_size

    def run(
        self, name: str, requests: list[Planned], warm_s: float, end_s: float, concurrency: int = 0
    ) -> Run:
        """Send and wait for all answers. With `concurrency`: that many at once, until `end_s`."""
        jobs = [self._start(name, number, requests, end_s, concurrency) for number in range(self._num)]
        try:
            for process, _ in jobs:
                _expect_ready(process)
            began_at, cpu = time.time() + START_IN_S, self._stack.cpu_seconds()
            origin = time.monotonic() + START_IN_S
            for process, _ in jobs:
                assert process.stdin is not None
                process.stdin.write(f"{origin}\n")
                process.stdin.flush()
            self._wait(jobs, origin + end_s)
            elapsed_s = time.monotonic() - origin
            after = self._stack.cpu_seconds()
            for process, _ in jobs:
                process.wait(120)
        finally:
            for process, _ in jobs:
                with suppress(ProcessLookupError):
                    process.kill()
        seen = [one for _, out in jobs for one in msgspec.msgpack.decode(out.read_bytes(), type=list[Seen])]
        seen.sort(key=lambda one: one.sent_s)
        share = {key: (after.get(key, was) - was) / elapsed_s for key, was in cpu.items()}
        run = Run(name, requests, seen, warm_s, end_s, began_at, share)
        _tell_run(run)
        return run

    def _start(
        self, name: str, number: int, requests: list[Planned], end_s: float, concurrency: int
    ) -> tuple[subprocess.Popen[str], Path]:
        mine = requests[number :: self._num]
        each = -(-concurrency // self._num)
        job = Job(
            ports=self._stack.ports,
            api_keys=self._stack.api_keys,
            model=self._model,
            vocab_size=self._vocab_size,
            requests=mine,
            concurrency=each,
            seconds=end_s,
            num_connections=max(8, each // len(self._stack.ports) + 1),
        )
        path = self._folder / f"load-{name.replace(' ', '-')}-{number}"
        job_path, out = path.with_suffix(".job"), path.with_suffix(".seen")
        job_path.write_bytes(msgspec.msgpack.encode(job))
        command = [sys.executable, "-m", "bench.system_load", str(job_path), str(out)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return process, out

    def _wait(self, jobs: Sequence[tuple[subprocess.Popen[str], Path]], until: float) -> None:
        """Until the sending is over; the system must live meanwhile."""
        while time.monotonic() < until:
            self._stack.check()
            for process, _ in jobs:
                if process.poll():
                    raise EmbeddedServiceError(f"a client ended with exit code {process.returncode}")
            time.sleep(0.25)


def _expect_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise EmbeddedServiceError(f"a client did not start; exit code {process.wait(10)}")


def _tell_run(run: Run) -> None:
    """What concerns the run as a whole: outcomes, the clients' own lateness, who computed."""
    outcomes: dict[int, int] = {}
    for one in run.seen:
        outcomes[one.status] = outcomes.get(one.status, 0) + 1
    lags = sorted(one.lag_s for one in run.seen)
    late = f"sent behind plan p99 {1e3 * (nearest_rank(lags, 0.99) or 0):.1f} ms, at most {1e3 * lags[-1]:.1f}"
    say(f"{run.name}: {len(run.seen)} requests, by status {outcomes}; {late}")
    shares = sorted(run.cpu_share.items(), key=lambda pair: -pair[1])
    say("  shares of a core: " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01))
    lengths = {one.index: one.num_output_tokens for one in run.requests}
    wrong = sum(one.status == 200 and one.num_tokens != lengths[one.index] for one in run.seen)
    if wrong or (nearest_rank(lags, 0.99) or 0) > MAX_LAG_S:
        say(f"  WARNING: {wrong} answers of another length than asked; clients late by more than 10 ms?")


# --- figures


class Point(NamedTuple):
    """One request as it is judged, measured or simulated. Seconds; None where refused."""

    class_id: str
    ttft_s: float | None
    tpot_s: float | None


def measured_points(run: Run) -> list[Point]:
    classes = run.class_of()
    return [Point(classes[one.index], *_times(one)) for one in run.judged()]


def _times(one: Seen) -> tuple[float | None, float | None]:
    if one.status != 200 or one.first_s is None or one.end_s is None:
        return None, None
    tpot_s = (one.end_s - one.first_s) / (one.num_tokens - 1) if one.num_tokens > 1 else None
    return one.first_s - one.sent_s, tpot_s


def predicted_points(run: Run, policy: Policy, fitted: Fitted, path_s: float) -> list[Point]:
    """The simulator's answer for the judged requests; `path_s` is added to each first token."""
    outcomes = predict(run.requests, run.seen, policy, fitted)
    points = []
    for one, outcome in zip(run.seen, outcomes, strict=True):
        if run.warm_s <= one.sent_s < run.end_s:
            ttft_s = None if outcome.refused or outcome.ttft_s is None else outcome.ttft_s + path_s
            points.append(Point(outcome.request.class_id, ttft_s, None if ttft_s is None else outcome.tpot_s))
    return points


def path_residual_s(run: Run, policy: Policy, fitted: Fitted) -> float:
    """What gateway, Postgres, Valkey and loopback add to a first token: the median over requests of what the
    simulator does not explain."""
    pairs = zip(measured_points(run), predicted_points(run, policy, fitted, 0.0), strict=True)
    beyond = [a.ttft_s - b.ttft_s for a, b in pairs if a.ttft_s is not None and b.ttft_s is not None]
    return statistics.median(beyond) if beyond else 0.0


def figures(points: Sequence[Point], policy: Policy) -> dict[str, dict[str, float]]:
    """Per class: percentiles in ms, shares in %."""
    found = {}
    for class_id in CLASSES:
        mine = [one for one in points if one.class_id == class_id]
        if mine:
            found[class_id] = _class_figures(mine, policy.find(class_id).slo.ttft_s)
    return found


def _class_figures(mine: Sequence[Point], ttft_s: float) -> dict[str, float]:
    values: dict[str, float] = {"requests": len(mine)}
    for name, times in (("ttft", [one.ttft_s for one in mine]), ("tpot", [one.tpot_s for one in mine])):
        ordered = sorted(one for one in times if one is not None)
        for point, share in POINTS:
            if (value := nearest_rank(ordered, share)) is not None:
                values[f"{name}_{point}"] = 1e3 * value
    values["refused"] = 100 * sum(one.ttft_s is None for one in mine) / len(mine)
    values["ttft_attainment"] = 100 * sum(one.ttft_s is not None and one.ttft_s <= ttft_s for one in mine) / len(mine)
    return values


def unit_of(name: str) -> str:
    return {"requests": "requests", "refused": "%", "ttft_attainment": "%"}.get(name, "ms")


# --- the bench


class Bench:
    """Runs the parts in order and collects rows."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._lengths = LENGTHS[options.lengths]
        self.rows: list[dict[str, Any]] = []
        self.policy = default_policy()
        self.environment: dict[str, Any] = {
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "gateways": options.gateways,
            "client_processes": options.clients,
        }

    def add(self, bench: str, value: float, unit: str) -> None:
        row = {
            "bench": bench,
            "engine": "tidegate",
            "model": self._options.model,
            "batch": self._options.slots,
            "value": round(value, 4),
            "unit": unit,
            "floor": None,
        }
        self.rows.append(row)

    def run(self, stack: Stack) -> None:
        """Everything after the system is ready."""
        options, info = self._options, stack.worker_info()
        self.environment |= {"dtype": info.dtype, "attention": info.attention_backend}
        vocab_size = json.loads((Path(self._model) / "config.json").read_text())["vocab_size"]
        clients = Clients(stack, self._folder, options.clients, Path(self._model).name, vocab_size)
        capacity = self._capacity(stack, clients)
        learning, fitted = self._learn(stack, clients, capacity)
        runs = {load: self._measure(clients, load, capacity) for load in LOADS}
        say("simulating")
        path_s = path_residual_s(learning, self.policy, fitted)
        self.add("path beside the worker", 1e3 * path_s, "ms")
        say(f"gateway, Postgres, Valkey and loopback add {1e3 * path_s:.1f} ms to a first token (median)")
        self._compare(runs, fitted, path_s)

    @property
    def _model(self) -> str:
        return self._options.folder

    def _capacity(self, stack: Stack, clients: Clients) -> float:
        """Requests that end per second while every slot is busy."""
        options = self._options
        warm_s, end_s = options.warm, options.warm + options.capacity_seconds
        concurrency = -(-options.slots * 3 // 2)
        requests = at_once(options.closed_requests, self._lengths, options.gateways, seed=1)
        run = clients.run("capacity", requests, warm_s, end_s, concurrency)
        ended = [one for one in run.seen if one.status == 200 and warm_s <= (one.end_s or 0) < end_s]
        if not ended:
            raise EmbeddedServiceError("no request ended; see web-*.log and worker.log")
        if len(run.seen) == len(requests):
            say("  WARNING: the closed loop ran out of requests")
        messages = stack.worker_telemetry(run.began_at + warm_s, run.began_at + end_s)
        steps = sum(one.num_steps for one in messages) or 1
        capacity = len(ended) / options.capacity_seconds
        tokens_per_s = sum(one.num_tokens for one in ended) / options.capacity_seconds
        self.add("capacity", capacity, "requests/s")
        self.add("capacity", tokens_per_s, "tokens/s")
        self.add("capacity, step", 1e3 * sum(one.interval_s for one in messages) / steps, "ms/step")
        self._add_web(run, tokens_per_s)
        say(f"capacity {capacity:.1f} requests/s, {tokens_per_s:.0f} tokens/s, {steps} steps")
        self._full = messages
        return capacity

    def _add_web(self, run: Run, tokens_per_s: float) -> None:
        """How much of a core the gateways used, and how many tokens one whole core would carry."""
        used = sum(share for name, share in run.cpu_share.items() if name.startswith("web-"))
        self.add("gateway processes, all together", 100 * used, "% of a core")
        self.add("tokens that one gateway process could stream", tokens_per_s / max(used, 1e-9), "tokens/s")

    def _learn(self, stack: Stack, clients: Clients, capacity: float) -> tuple[Run, Fitted]:
        options = self._options
        stack.publish(self.policy)
        time.sleep(FOLLOWED_S)
        seconds = options.learn_seconds / len(LEARNING_RATES)
        rates = [(share * capacity, seconds) for share in LEARNING_RATES]
        requests = arrivals(rates, self._lengths, options.gateways, seed=2)
        run = clients.run("learning", requests, 1.0, options.learn_seconds)
        fitted = fit(
            stack.worker_info(),
            self._full,
            num_in_flight=2 if self._options.device == "cuda" else 1,
            num_swap_blocks=SWAP_BYTES // self._block_bytes(stack.worker_info().block_size),
        )
        known = ", ".join(f"{name} {value:.3g}" for name, value in fitted.figures.items())
        say(f"learned: {known}; {1e3 * fitted.gap_s:.2f} ms between steps")
        self.add("time between steps when saturated", 1e3 * fitted.gap_s, "ms")
        return run, fitted

    def _block_bytes(self, block_size: int) -> int:
        config = json.loads((Path(self._model) / "config.json").read_text())
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        width = 2 * config["num_key_value_heads"] * head * config["num_hidden_layers"]
        return int(block_size * width * (2 if self._options.device == "cuda" else 4))

    def _measure(self, clients: Clients, load: float, capacity: float) -> Run:
        options = self._options
        end_s = options.warm + options.seconds
        requests = arrivals([(load * capacity, end_s)], self._lengths, options.gateways, seed=10 + round(100 * load))
        run = clients.run(f"load {load}", requests, options.warm, end_s)
        tokens = sum(one.num_tokens for one in run.judged())
        self.add(f"load {load}: offered", len(run.judged()) / options.seconds, "requests/s")
        self.add(f"load {load}: tokens", tokens / options.seconds, "tokens/s")
        self._show({"measured": figures(measured_points(run), self.policy)})
        return run

    def _compare(self, runs: dict[float, Run], fitted: Fitted, path_s: float) -> None:
        """Measured beside predicted; the two simulations in processes of their own."""
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(runs), mp_context=spawn) as pool:
            futures = {
                load: pool.submit(predicted_points, run, self.policy, fitted, path_s) for load, run in runs.items()
            }
            for load, run in runs.items():
                measured = figures(measured_points(run), self.policy)
                predicted = figures(futures[load].result(), self.policy)
                say(f"load {load} of the measured capacity: measured, predicted, predicted / measured; goals")
                self._show({"measured": measured, "predicted": predicted}, TTFT_GOALS_MS[load])
                self._add_all(load, measured, predicted)

    def _add_all(self, load: float, measured: dict[str, Any], predicted: dict[str, Any]) -> None:
        for class_id, values in measured.items():
            for name, value in values.items():
                self.add(f"load {load}: {class_id} {name}", value, unit_of(name))
                if name in predicted.get(class_id, {}):
                    self.add(f"load {load}: {class_id} {name}, simulated", predicted[class_id][name], unit_of(name))

    def _show(self, tables: dict[str, dict[str, dict[str, float]]], goals: dict[str, float] | None = None) -> None:
        for class_id in CLASSES:
            columns = [table.get(class_id, {}) for table in tables.values()]
            for name in columns[0]:
                values = [column.get(name) for column in columns]
                cells = "".join(f"{'–' if one is None else f'{one:,.1f}':>10}" for one in values)
                ratio = f"{values[1] / values[0]:>8.2f}" if len(values) > 1 and values[0] and values[1] else ""
                goal = goals.get(class_id) if goals and name == "ttft_p99" else None
                print(f"    {class_id:8}{name:18}{cells}{ratio}{f'   goal {goal}' if goal else ''}", flush=True)


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
    add("--learn-seconds", type=float, default=10.0)
    add("--slots", type=int, help="rows of the batch; 256 on CUDA, 16 on a CPU")
    add("--lengths", choices=LENGTHS, help="usual on CUDA, short on a CPU")
    add("--gateways", type=int, default=max(1, min(6, cpus // 3)), help="web processes")
    add("--clients", type=int, default=max(1, min(4, cpus // 4)), help="client processes")
    add("--closed-requests", type=int, default=20_000, help="at most, for the capacity")
    add("--data-dir", type=Path, help="keep data and logs there; by default they go with the run, if it succeeds")
    add("--json", type=Path, help="write the rows to this file as well")
    options = parser.parse_args()
    options.slots = options.slots or (256 if options.device == "cuda" else 16)
    options.lengths = options.lengths or ("usual" if options.device == "cuda" else "short")
    return options


def worker_env(options: argparse.Namespace) -> dict[str, str]:
    return {
        "TIDEGATE_DEVICE": options.device,
        "TIDEGATE_DTYPE": "bfloat16" if options.device == "cuda" else "float32",
        "TIDEGATE_NUM_SLOTS": str(options.slots),
        "TIDEGATE_MAX_MODEL_LEN": "2048",
        "TIDEGATE_SWAP_BYTES": str(SWAP_BYTES),
        **({} if options.device == "cuda" else {"TIDEGATE_KV_BYTES": str(1 << 28)}),
    }


def run_in(folder: Path, options: argparse.Namespace, report: Callable[[Bench], None]) -> None:
    """Start the system in `folder`, measure, stop it."""
    own = Path(options.model)
    options.folder = str(own.resolve() if own.is_dir() else folder / "models" / f"random-{options.model}")
    module = ("-m", "bench.system_model", "--shape", options.model, "--device", options.device, "--out", options.folder)
    writing = None if own.is_dir() else Program("model", (sys.executable, *module))
    settings = StackSettings(folder, Path(options.folder), options.gateways, worker_env(options))
    stack, bench = Stack(settings, say), Bench(options, folder)
    try:
        began = time.monotonic()
        stack.start(without_admission(bench.policy), writing)
        bench.add("start of the whole system", time.monotonic() - began, "s")
        bench.run(stack)
    finally:
        report(bench)
        say("stopping")
        stack.stop()


def main() -> None:
    options = parse()

    def report(bench: Bench) -> None:
        if options.json:
            document = {"environment": bench.environment, "rows": bench.rows}
            options.json.write_text(json.dumps(document, indent=1) + "\n")

    if options.data_dir:
        options.data_dir.mkdir(parents=True, exist_ok=True)
        run_in(options.data_dir.resolve(), options, report)
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-system-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        run_in(Path(folder), options, report)


if __name__ == "__main__":
    try:
        main()
    except EmbeddedServiceError as error:
        sys.exit(f"error: {error}")
