"""What one step costs beside the model: `python -m bench.overhead`.

Overhead is the loop's wall time minus the time inside `model.forward`: claiming, planning, booking and
applying by the real scheduler, packing, attention planning, sampling and the report. All rows decode.
`engine` is that without Redis; `worker` is the worker's own loop, which also turns tokens into rows for the
gateways, hands them to its courier and closes telemetry, on a real Valkey that this command starts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from controlplane.embedded.services import EmbeddedServices
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import describe
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import SequenceInput, to_result
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Header, Payload, SamplingParams
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.courier_process import CourierProcess
from scheduler_worker.worker.inbox import Inbox, QueueMirrored
from scheduler_worker.worker.loop import StepLoop
from scheduler_worker.worker.stats import LoopStats

BLOCK_SIZE = 16
MAX_TOKENS = 760
WARM_UP_STEPS = 300
"""The cost model learns from each of the first 256 steps, then from every fourth: a worker runs for days."""
MAX_STEPS = 450
POOL = "bench"
SAMPLING = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True),
    "temperature": SamplingParams(temperature=0.8, seed=1, ignore_eos=True),
    "top-p": SamplingParams(temperature=0.8, top_p=0.95, seed=1, ignore_eos=True),
    "top-k": SamplingParams(temperature=0.8, top_k=40, seed=1, ignore_eos=True),
}


def small_model(vocab_size: int) -> transformers.PreTrainedModel:
    """A Llama of random weights, small enough that overhead is easy to see."""
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


class Loop:
    """The worker's step loop without its transport: `batch` sequences whose answers have `MAX_TOKENS` tokens."""

    def __init__(self, executor: TorchExecutor, batch: int, sampling: SamplingParams) -> None:
        self._executor = executor
        self._scheduler = Scheduler(default_policy(), executor.capacity)
        self._ids = [f"{batch}-{number}" for number in range(batch)]
        for number, seq_id in enumerate(self._ids):
            prompt = _prompt(number)
            executor.add(SequenceInput(seq_id, prompt, len(prompt), sampling))
            self._scheduler.add(_header(seq_id, number), time.monotonic())
        while self.step()[2] < batch:
            pass

    def step(self) -> tuple[float, float, int]:
        """One step: wall and forward time in seconds, and the number of tokens."""
        started = time.perf_counter()
        scheduler, now = self._scheduler, time.monotonic()
        scheduler.claim(scheduler.claim_candidates(now), now)
        plan = scheduler.plan_step(now)
        assert plan is not None
        scheduler.begin(plan)
        self._executor.launch(plan)
        output = self._executor.collect()
        result = to_result(plan, output)
        applied = scheduler.apply_result(result, time.monotonic())
        num_tokens = 0 if applied.tokens is None else len(applied.tokens.rows)
        return time.perf_counter() - started, output.forward_s, num_tokens

    def close(self) -> None:
        for seq_id in self._ids:
            self._executor.remove(seq_id)


class WorkerLoop:
    """The worker's own step loop and courier; no request arrives but those that are here from the start."""

    def __init__(self, executor: TorchExecutor, batch: int, sampling: SamplingParams, redis_url: str) -> None:
        self._executor = executor
        self._client = transport.connect(redis_url)
        self._client.flushall()
        self._clock = RedisClock()
        transport.synchronize(self._client, self._clock)
        self._ids = [self._enqueue(f"{batch}-{number}", number, sampling) for number in range(batch)]
        scheduler, self._inbox = Scheduler(default_policy(), executor.capacity), Inbox()
        mirror = transport.run(self._client, scripts.mirror(POOL))
        self._inbox.put(QueueMirrored(mirror.headers, mirror.policy))
        self._courier = CourierProcess(redis_url, POOL, "bench", keys.WORKER_LEASE_S)
        self._closed: list[LoopStats] = []
        self._loop = StepLoop(
            scheduler,
            executor,
            self._courier,
            self._inbox,
            self._clock,
            default_policy(),
            self._closed.append,
            scheduler.cost_model.to_dict,
            "bench",
        )

    def _enqueue(self, seq_id: str, number: int, sampling: SamplingParams) -> str:
        prompt = _prompt(number)
        header = Header(
            request_id=seq_id,
            class_id=_class_id(number),
            tenant=f"tenant-{number % 4}",
            gateway="gateway",
            arrived_at=self._clock.now(),
            num_prompt_tokens=len(prompt),
            max_tokens=MAX_TOKENS,
        )
        payload = Payload(request_id=seq_id, token_ids=array("I", prompt).tobytes(), sampling=sampling)
        transport.run(self._client, scripts.enqueue(POOL, header, payload))
        return seq_id

    def run(self, steps: int) -> list[float]:
        """Overheads in seconds of so many steps after the warm-up, all of them of the whole batch."""
        while sum(len(one.overheads_s) for one in self._closed) < WARM_UP_STEPS + steps:
            self._loop.turn()
        return [overhead for one in self._closed for overhead in one.overheads_s][-steps:]

    def close(self) -> None:
        self._loop.finish_steps()
        self._courier.leave(2.0)
        for seq_id in self._ids:
            self._executor.remove(seq_id)
        self._client.close()


def _prompt(number: int) -> list[int]:
    """100 to 255 tokens: rows begin blocks at different steps, as those of a real batch do."""
    return [(7 + number * 31 + i) % 1000 for i in range(100 + number % 32 * 5)]


def _class_id(number: int) -> str:
    classes = list(default_policy().classes)
    return classes[number % len(classes)].id


def _header(seq_id: str, number: int) -> SequenceHeader:
    now = time.monotonic()
    class_id, tenant = _class_id(number), f"tenant-{number % 4}"
    return SequenceHeader(seq_id, class_id, tenant, number + 1, now, len(_prompt(number)), MAX_TOKENS)


def measure(executor: TorchExecutor, batch: int, kind: str, steps: int) -> dict[str, object]:
    """Overhead of one step of engine and scheduler, in milliseconds."""
    loop = Loop(executor, batch, SAMPLING[kind])
    times = [loop.step() for _ in range(WARM_UP_STEPS + steps)][WARM_UP_STEPS:]
    loop.close()
    forward_ms = round(statistics.median(forward for _, forward, _ in times) * 1e3, 3)
    return _figures("engine", batch, kind, [wall - forward for wall, forward, _ in times]) | {
        "forward_ms": forward_ms
    }


def measure_worker(
    executor: TorchExecutor, batch: int, kind: str, steps: int, redis_url: str
) -> dict[str, object]:
    """Overhead of one turn of the worker's loop, in milliseconds."""
    loop = WorkerLoop(executor, batch, SAMPLING[kind], redis_url)
    overheads = loop.run(steps)
    loop.close()
    return _figures("worker", batch, kind, overheads)


def _figures(part: str, batch: int, kind: str, overheads_s: list[float]) -> dict[str, object]:
    quartile, median, _ = statistics.quantiles(overheads_s, n=4)
    return {
        "bench": "overhead",
        "part": part,
        "batch": batch,
        "sampling": kind,
        "overhead_ms": round(median * 1e3, 3),
        "p25_ms": round(quartile * 1e3, 3),
        "p95_ms": round(statistics.quantiles(overheads_s, n=20)[-1] * 1e3, 3),
    }


@contextmanager
def _valkey() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServices(Path(folder), durable=False) as services:
        yield services.redis_url


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocab", type=int, default=8192, help="vocabulary of the small model (default 8192)"
    )
    parser.add_argument("--model", help="a model of your own instead, by path")
    parser.add_argument("--steps", type=int, default=300, help="after a warm-up of as many (default 300)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--sampling", nargs="+", choices=SAMPLING, default=list(SAMPLING))
    arguments = parser.parse_args()
    if not 1 <= arguments.steps <= MAX_STEPS:
        parser.error(f"--steps is {arguments.steps}: it must be 1 to {MAX_STEPS}, answers have {MAX_TOKENS} tokens")
    torch.set_num_threads(arguments.threads)
    executor = build(arguments.model, arguments.vocab, max(arguments.batches))
    with _valkey() as redis_url, torch.inference_mode():
        for batch in arguments.batches:
            for kind in arguments.sampling:
                _say(measure(executor, batch, kind, arguments.steps))
                _say(measure_worker(executor, batch, kind, arguments.steps, redis_url))


def _say(figures: dict[str, object]) -> None:
    print(json.dumps(figures), flush=True)


def build(path: str | None, vocab: int, num_slots: int) -> TorchExecutor:
    if path is None:
        model = small_model(vocab)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
    settings = EngineSettings(
        model="bench", num_slots=num_slots, num_blocks=64 * num_slots, block_size=BLOCK_SIZE, self_check=False
    )
    return TorchExecutor(describe(model, path or "random"), settings)


if __name__ == "__main__":
    main()
