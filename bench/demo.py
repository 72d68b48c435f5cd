"""The demo model under 24 concurrent streams, three ways in one run: `python -m bench.demo`.

1. `tidegate`: the whole system as `bin/demo` starts it (gateway, Postgres, Valkey, Celery, one worker), over HTTP.
2. `static`: the same engine in this process, batches filled once and run until their longest member ends. Rows that
   ended cost nothing more here, which is kinder than static batching usually is.
3. `transformers`: `transformers serve --continuous-batching`, over HTTP, from a virtual environment of its own
   (`--transformers-python`; without it this part is left out, and the summary says so).

All get the same chats, greedy, with the same `max_tokens`, 24 at a time. Figures are the client's: request sent →
first piece of text, and between pieces. Each way runs `--rounds` times in turn; ratios are of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
NUM_STREAMS = 24
CLASSES = ("high", "medium", "low")
START_TIMEOUT_S = 300.0
SLACK_TPOT_S = 1.0
TOPICS = (
    "the tides", "a lighthouse", "the history of paper", "how bread rises", "why the sky is blue", "a short poem",
    "the planets", "how to repair a bicycle", "what a compiler does", "the seasons", "a harbour town", "salt",
)  # fmt: skip


@dataclass(frozen=True)
class Ask:
    """One chat: its class, text and the most tokens of its answer."""

    class_id: str
    text: str
    max_tokens: int


@dataclass
class Answer:
    """What the client saw. Times in seconds since the request was sent."""

    class_id: str
    ttft_s: float
    e2e_s: float
    num_tokens: int

    @property
    def tpot_s(self) -> float | None:
        return (self.e2e_s - self.ttft_s) / (self.num_tokens - 1) if self.num_tokens > 1 else None


@dataclass
class Round:
    """One way, once through the workload."""

    answers: list[Answer]
    makespan_s: float

    @property
    def tokens_per_s(self) -> float:
        return sum(one.num_tokens for one in self.answers) / self.makespan_s


def workload(num: int, seed: int) -> list[Ask]:
    """Chats in three classes in turn; answers of 8 to 128 tokens, log-normal as people ask for them."""
    draw = random.Random(seed)
    asks = []
    for index in range(num):
        topic = draw.choice(TOPICS)
        length = min(128, max(8, int(draw.lognormvariate(3.4, 0.9))))
        asks.append(Ask(CLASSES[index % 3], f"Tell me something new about {topic}, number {index}.", length))
    return asks


async def stream_all(
    asks: Sequence[Ask], url: str, body: Callable[[Ask], dict[str, Any]], keys: dict[str, str]
) -> Round:
    """All asks, `NUM_STREAMS` at a time."""
    waiting = deque(asks)
    answers: list[Answer] = []

    async def one_stream(client: httpx.AsyncClient) -> None:
        while waiting:
            ask = waiting.popleft()
            answers.append(await stream_one(client, url, ask, body(ask), keys.get(ask.class_id, "none")))

    started = time.perf_counter()
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    async with httpx.AsyncClient(timeout=600.0, limits=limits) as client:
        await asyncio.gather(*(one_stream(client) for _ in range(NUM_STREAMS)))
    return Round(answers, time.perf_counter() - started)


async def stream_one(client: httpx.AsyncClient, url: str, ask: Ask, body: dict[str, Any], key: str) -> Answer:
    """One streamed chat; tokens are what the server's usage says, else the pieces that came."""
    sent = time.perf_counter()
    first: float | None = None
    last, pieces, counted = sent, 0, 0
    async with client.stream("POST", url, json=body, headers={"Authorization": f"Bearer {key}"}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{url}: {response.status_code} {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            chunk = json.loads(line[5:])
            counted = (chunk.get("usage") or {}).get("completion_tokens") or counted
            if any((choice.get("delta") or {}).get("content") for choice in chunk.get("choices", ())):
                last = time.perf_counter()
                first = first or last
                pieces += 1
    return Answer(ask.class_id, (first or last) - sent, last - sent, counted or pieces)


@contextmanager
def process(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """A server that ends with the block."""
    with log.open("w") as out:
        running = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        try:
            yield
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)


def wait_for(url: str, log: Path) -> None:
    """Until the server answers 200."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer within {START_TIMEOUT_S:g} s:\n{log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tidegate(data_dir: Path) -> Iterator[Callable[[Sequence[Ask]], Round]]:
    """`bin/demo --no-load`, and a function that sends it the asks."""
    port, log = free_port(), data_dir / "demo.log"
    command = ["bin/demo", "--no-load", "--port", str(port), "--data-dir", str(data_dir)]
    with process(command, log):
        wait_for(f"http://127.0.0.1:{port}/readyz", log)
        info = json.loads((data_dir / "demo.json").read_text())
        accept_everything(f"http://127.0.0.1:{port}", info)

        def send(asks: Sequence[Ask]) -> Round:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            return asyncio.run(stream_all(asks, url, lambda ask: chat(ask, info["model"]), info["api_keys"]))

        yield send


def accept_everything(url: str, info: dict[str, Any]) -> None:
    """Publish the demo's policy without admission and with slack token objectives: the other two ways refuse nobody
    and run all streams at once, whatever that does to their steps."""
    with httpx.Client(base_url=url, timeout=30.0) as client:
        client.get("/api/v1/session").raise_for_status()
        form = {"username": info["username"], "password": info["password"]}
        signed_in = client.post("/api/v1/session", json=form, headers=csrf(client, url))
        signed_in.raise_for_status()
        active = client.get("/api/v1/policies/active").raise_for_status()
        document = active.json()["document"]
        document["admission"]["enabled"] = False
        for one in document["classes"]:
            one["slo"]["tpot_s"] = SLACK_TPOT_S
        body = {"document": document, "comment": "Accept everything while comparing"}
        headers = {**csrf(client, url), "If-Match": active.headers["ETag"]}
        client.post("/api/v1/policies", json=body, headers=headers).raise_for_status()
    time.sleep(2.0)  # workers and gateways follow within a second


def csrf(client: httpx.Client, url: str) -> dict[str, str]:
    """What Django asks of a form's sender."""
    return {"X-CSRFToken": client.cookies["csrftoken"], "Origin": url, "Referer": url}


@contextmanager
def transformers_server(python: str, model: Path, log: Path) -> Iterator[Callable[[Sequence[Ask]], Round]]:
    """`transformers serve --continuous-batching`, and a function that sends it the asks."""
    port = free_port()
    command = [
        str(Path(python).parent / "transformers"), "serve", str(model), "--continuous-batching", "--device", "cpu",
        "--port", str(port), "--cb-num-blocks", "256", "--cb-block-size", "32", "--cb-max-batch-tokens", "256",
    ]  # fmt: skip
    with process(command, log, {"HF_HUB_OFFLINE": "1"}):
        wait_for(f"http://127.0.0.1:{port}/health", log)

        def send(asks: Sequence[Ask]) -> Round:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            return asyncio.run(stream_all(asks, url, lambda ask: chat(ask, str(model)), {}))

        yield send


def chat(ask: Ask, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": ask.text}],
        "max_tokens": ask.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class StaticBatches:
    """The same engine without continuous batching: a batch starts when the last one has ended."""

    def __init__(self, model: Path, num_slots: int) -> None:
        from transformers import AutoTokenizer

        from scheduler_worker.engine import EngineSettings, load_executor

        self._executor = load_executor(EngineSettings(model=str(model), num_slots=num_slots, num_blocks=4096))
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._num_slots = num_slots

    def __call__(self, asks: Sequence[Ask]) -> Round:
        started = time.perf_counter()
        answers: list[Answer] = []
        for first in range(0, len(asks), self._num_slots):
            answers += self._batch(asks[first : first + self._num_slots], first, started)
        return Round(answers, time.perf_counter() - started)

    def _batch(self, asks: Sequence[Ask], first: int, started: float) -> list[Answer]:
        """A request's time runs from the start of the round: it waits for the batches before it."""
        from scheduler_worker.core.policy import default_policy
        from scheduler_worker.core.scheduler import Scheduler

        scheduler = Scheduler(default_policy(), self._executor.capacity)
        times: dict[str, list[float]] = {}
        classes = {}
        for index, ask in enumerate(asks, start=first):
            seq_id = f"s{index}"
            classes[seq_id] = ask.class_id
            times[seq_id] = []
            self._add(scheduler, seq_id, ask, index)
        scheduler.claim(list(classes), 0.0)
        while (plan := scheduler.plan_step(time.perf_counter() - started)) is not None:
            scheduler.begin(plan)
            self._executor.launch(plan)
            self._collect(scheduler, plan, times, started)
        for seq_id in classes:
            self._executor.remove(seq_id)
        return [Answer(classes[one], stamps[0], stamps[-1], len(stamps)) for one, stamps in times.items()]

    def _add(self, scheduler: Any, seq_id: str, ask: Ask, index: int) -> None:
        from scheduler_worker.core.sequence import SequenceHeader
        from scheduler_worker.executor import SequenceInput
        from scheduler_worker.protocol.messages import SamplingParams

        ids = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": ask.text}], add_generation_prompt=True, return_dict=False
        )
        self._executor.add(
            SequenceInput(seq_id, ids, len(ids), SamplingParams(temperature=0.0, max_tokens=ask.max_tokens))
        )
        scheduler.add(SequenceHeader(seq_id, "low", "bench", index + 1, 0.0, len(ids), ask.max_tokens), 0.0)

    def _collect(self, scheduler: Any, plan: Any, times: dict[str, list[float]], started: float) -> None:
        from scheduler_worker.executor import to_result

        output = self._executor.collect()
        now = time.perf_counter() - started
        for row in output.rows:
            times[row.seq_id] += [now] * len(row.token_ids)
        scheduler.apply_result(to_result(plan, output), now)

    def close(self) -> None:
        self._executor.close()


def rounds_of(
    name: str, send: Callable[[Sequence[Ask]], Round], asks: Sequence[Ask], num: int
) -> list[Round]:
    """A few asks to warm up, then the rounds; says how far it is."""
    rounds: list[Round] = []
    _tell(f"{name}: warming up")
    send(asks[:6])
    for number in range(num):
        rounds.append(send(asks))
        _tell(f"{name}: round {number + 1} of {num} took {rounds[-1].makespan_s:.0f} s")
    return rounds


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def points(values_s: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {f"p{point}": round(1e3 * percentile(values_s, point / 100), 1) for point in (50, 95, 99)}


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians over rounds of throughput, and percentiles over all answers."""
    answers = [one for each in rounds for one in each.answers]
    by_class = {}
    for class_id in CLASSES:
        mine = [one for one in answers if one.class_id == class_id]
        tpots = [one.tpot_s for one in mine if one.tpot_s is not None]
        by_class[class_id] = {"ttft_ms": points([one.ttft_s for one in mine]), "tpot_ms": points(tpots)}
    return {
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in rounds), 1),
        "makespan_s": round(statistics.median(one.makespan_s for one in rounds), 2),
        "num_tokens": sum(one.num_tokens for one in rounds[0].answers),
        "requests": dict(Counter(one.class_id for one in rounds[0].answers)),
        "classes": by_class,
    }


def show(figures: dict[str, dict[str, Any]]) -> None:
    """A row for each way and class, then the ratios of what ran."""
    print(
        f"{'':14}{'tokens/s':>9}  {'class':8}{'TTFT p50 / p95 / p99, ms':>28}{'TPOT p50 / p95 / p99, ms':>28}"
    )
    for name, one in figures.items():
        for class_id, parts in one["classes"].items():
            ttft, tpot = (" / ".join(f"{value:,.0f}" for value in part.values()) for part in parts.values())
            print(f"{name:14}{one['tokens_per_s']:>9}  {class_id:8}{ttft:>28}{tpot:>28}")
    ours = figures["tidegate"]["tokens_per_s"]
    for name, one in figures.items():
        if name != "tidegate":
            print(f"tidegate / {name}: {ours / one['tokens_per_s']:.2f} × tokens per second")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transformers-python", help="python of a venv with transformers[serving]")
    parser.add_argument("--json", type=Path, help="write all figures")
    options = parser.parse_args()
    asks = workload(options.requests, options.seed)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        data_dir = Path(folder)
        _tell("starting the demo: calibration and model conversion take a minute")
        with tidegate(data_dir) as send:
            figures["tidegate"] = summary(rounds_of("tidegate", send, asks, options.rounds))
        model = next((data_dir / "models").iterdir())
        batches = StaticBatches(model, NUM_STREAMS)
        figures["static"] = summary(rounds_of("static", batches, asks, options.rounds))
        batches.close()
        if options.transformers_python:
            with transformers_server(
                options.transformers_python, model, data_dir / "transformers.log"
            ) as send:
                figures["transformers"] = summary(rounds_of("transformers", send, asks, options.rounds))
        else:
            print("transformers serve: left out; give --transformers-python", file=sys.stderr)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
