"""What is asked of the whole system, and the processes that ask it."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from bench.system_load import Job, Planned, Seen
from bench.system_stack import Stack, cpu_s
from controlplane.embedded.errors import EmbeddedServiceError
from scheduler_worker.sim.report import nearest_rank

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"high": 0.2, "medium": 0.3, "low": 0.5}
START_IN_S = 1.0
MAX_LAG_S = 0.01
ANSWERED = {200, 429, 503}
MAX_BROKEN = 0.02


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


class Run(msgspec.Struct):
    """One measured run. Answers are judged from `warm_s` to `end_s`, by the instant of sending. Requests come at these
    `shares` of the capacity, each for the same time (known of learning runs; nothing is learned before `warm_s`)."""

    name: str
    requests: list[Planned]
    seen: list[Seen]
    warm_s: float
    end_s: float
    began_at: float
    cpu_share: dict[str, float] = {}
    shares: list[float] = []

    @property
    def part_s(self) -> float:
        """How long each share is asked for."""
        return self.end_s / len(self.shares)

    def part_of(self, sent_s: float) -> int:
        """Which of the shares is asked for at that instant."""
        return min(len(self.shares) - 1, max(0, int(sent_s / self.part_s)))

    def share_at(self, sent_s: float) -> float:
        return self.shares[self.part_of(sent_s)]

    def part(self, number: int, settling_s: float = 0.0) -> tuple[float, float]:
        """From when to when one of them is asked for, without what is not warm and the first seconds of it."""
        begins_s = number * self.part_s
        return max(self.warm_s, begins_s + settling_s), begins_s + self.part_s

    def judged(self) -> list[Seen]:
        return [one for one in self.seen if self.warm_s <= one.sent_s < self.end_s]

    def ended(self) -> list[Seen]:
        """Whole answers whose last token came in the judged time."""
        return [one for one in self.seen if one.status == 200 and self.warm_s <= (one.end_s or 0.0) < self.end_s]

    def class_of(self) -> dict[int, str]:
        return {one.index: one.class_id for one in self.requests}


class Workload(NamedTuple):
    """Draws requests for so many gateways in turn."""

    lengths: Lengths
    num_gateways: int

    def arrivals(self, rates: Iterable[tuple[float, float]], seed: int) -> list[Planned]:
        """Poisson arrivals: for each (requests/s, seconds) in turn; classes and lengths at random."""
        r, planned, began_s = random.Random(f"arrivals-{seed}"), list[Planned](), 0.0
        for rate, seconds in rates:
            at_s = began_s
            while (at_s := at_s + r.expovariate(rate)) < began_s + seconds:
                planned.append(self._planned(len(planned), at_s, seed, r))
            began_s += seconds
        return planned

    def at_once(self, num: int, seed: int) -> list[Planned]:
        """Requests for a closed loop."""
        r = random.Random(f"closed-{seed}")
        return [self._planned(place, 0.0, seed, r) for place in range(num)]

    def _planned(self, place: int, at_s: float, seed: int, r: random.Random) -> Planned:
        """The index is also the seed of the prompt: no two runs share a prompt, or its blocks would be cached."""
        class_id = r.choices(list(CLASSES), list(CLASSES.values()))[0]
        index = seed * 10_000_000 + place
        return Planned(index, at_s, place % self.num_gateways, class_id, *self.lengths.draw(r))


class Client(NamedTuple):
    """One process of load and the file that it will write."""

    process: subprocess.Popen[str]
    out: Path

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def expect_ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            raise EmbeddedServiceError(f"a client did not start; exit code {self.process.wait(10)}")


class Clients:
    """Load from several processes."""

    def __init__(self, stack: Stack, folder: Path, num_processes: int, model: str, vocab_size: int) -> None:
        self._stack, self._folder, self._num = stack, folder, num_processes
        self._model, self._vocab_size = model, vocab_size

    def run(self, name: str, requests: list[Planned], warm_s: float, end_s: float, concurrency: int = 0) -> Run:
        """Send and wait for all answers. With `concurrency`: that many at once, until `end_s`."""
        clients = [self._start(name, number, requests, end_s, concurrency) for number in range(self._num)]
        try:
            for client in clients:
                client.expect_ready()
            began_at, origin = time.time() + START_IN_S, time.monotonic() + START_IN_S
            for client in clients:
                client.say(str(origin))
            share = self._watch(clients, origin, origin + end_s)
            for client in clients:
                client.process.wait(120)
        finally:
            for client in clients:
                with suppress(ProcessLookupError):
                    client.process.kill()
        seen = [one for _, out in clients for one in msgspec.msgpack.decode(out.read_bytes(), type=list[Seen])]
        seen.sort(key=lambda one: one.sent_s)
        run = Run(name, requests, seen, warm_s, end_s, began_at, share)
        refuse_broken(run)
        return run

    def _start(self, name: str, number: int, requests: list[Planned], end_s: float, concurrency: int) -> Client:
        each = -(-concurrency // self._num)
        job = Job(
            ports=self._stack.ports,
            api_keys=self._stack.api_keys,
            model=self._model,
            vocab_size=self._vocab_size,
            requests=requests[number :: self._num],
            concurrency=each,
            seconds=end_s,
            num_connections=max(8, each // len(self._stack.ports) + 1),
        )
        path = self._folder / f"load-{name.replace(' ', '-')}-{number}"
        job_path, out = Path(f"{path}.job"), Path(f"{path}.seen")
        job_path.write_bytes(msgspec.msgpack.encode(job))
        command = [sys.executable, "-m", "bench.system_load", str(job_path), str(out)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return Client(process, out)

    def _watch(self, clients: Sequence[Client], begin: float, end: float) -> dict[str, float]:
        """Until the sending is over; the system must live meanwhile. Returns the shares of a core that were used."""
        time.sleep(max(0.0, begin - time.monotonic()))
        own = {f"client-{number}": psutil.Process(one.process.pid) for number, one in enumerate(clients, start=1)}
        before = self._stack.cpu_seconds() | {name: cpu_s(one) for name, one in own.items()}
        while time.monotonic() < end:
            self._stack.check()
            for client in clients:
                if client.process.poll():
                    raise EmbeddedServiceError(f"a client ended with exit code {client.process.returncode}")
            time.sleep(0.25)
        after = self._stack.cpu_seconds() | {name: cpu_s(one) for name, one in own.items()}
        elapsed_s = time.monotonic() - begin
        return {key: (after.get(key, was) - was) / elapsed_s for key, was in before.items()}


def statuses(run: Run) -> dict[int, int]:
    """How many answers by status."""
    found: dict[int, int] = {}
    for one in run.seen:
        found[one.status] = found.get(one.status, 0) + 1
    return found


def refuse_broken(run: Run) -> None:
    """A run in which answers broke or never came measures nothing."""
    broken = sum(num for status, num in statuses(run).items() if status not in ANSWERED)
    if broken > MAX_BROKEN * len(run.seen):
        raise EmbeddedServiceError(
            f"{run.name}: {broken} of {len(run.seen)} requests got no answer; by status {statuses(run)} "
            "(-1: the connection broke, 0: nothing came in time). The web processes' logs may say why."
        )


def describe(run: Run) -> list[str]:
    """What concerns the run as a whole: outcomes, the clients' own lateness, who computed."""
    lags = sorted(one.lag_s for one in run.seen)
    late_s = nearest_rank(lags, 0.99) or 0.0
    lines = [
        f"{run.name}: {len(run.seen)} requests, by status {statuses(run)}; "
        f"sent behind plan p99 {1e3 * late_s:.1f} ms, at most {1e3 * lags[-1]:.1f}"
    ]
    shares = sorted(run.cpu_share.items(), key=lambda pair: -pair[1])
    lines.append("  shares of a core: " + ", ".join(f"{name} {one:.0%}" for name, one in shares if one >= 0.01))
    lengths = {one.index: one.num_output_tokens for one in run.requests}
    wrong = sum(one.status == 200 and one.num_tokens != lengths[one.index] for one in run.seen)
    if wrong:
        lines.append(f"  WARNING: {wrong} answers of another length than asked")
    if late_s > MAX_LAG_S:
        lines.append("  WARNING: the clients were late; they share their cores with something else")
    return lines
