"""The engine under the real scheduler on one device: `python -m bench.engine --device cuda --json OUT`.

The loop is the worker's without its transport: claim, plan, book, launch, collect, apply, with as many steps in
flight as the engine allows. Weights are random; requests are given at once and ignore EOS.

Rows: `bench, engine, model, batch, value, unit, floor`. A decode step's floor is the time to read the weights and
the context's keys and values once, at the bandwidth of a large copy in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import transformers

from bench.engine_preempt import NUM_NEIGHBOURS, PreemptBench
from bench.engine_prefix import NUM_REQUESTS, prefix_rows
from scheduler_worker.core.plan import Applied, StepPlan
from scheduler_worker.core.policy import ClassPolicy, Policy, Slo, Step
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.attention.ahead import compile_attention_ahead
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import describe, resolve_device
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import SequenceInput, to_result
from scheduler_worker.protocol.messages import SamplingParams

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14_336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 768,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 2048,
        "tie_word_embeddings": True,
    },
}
CONTEXT_TOKENS = 1024
GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class Workload(NamedTuple):
    """Requests that arrive at once. Answers are log-normal; `deviation` is that of their logarithm."""

    num_requests: int
    num_slots: int
    deviation: float = 0.9
    max_tokens: int = 512

    def requests(self, vocab_size: int) -> list[Request]:
        """Prompts of 50 to 300 tokens, answers of at least 8; seed 1."""
        r = random.Random(1)
        requests = []
        for _ in range(self.num_requests):
            num_tokens = r.randint(50, 300)
            prompt = [r.randint(3, vocab_size - 1) for _ in range(num_tokens)]
            answer = int(r.lognormvariate(4.3, self.deviation))
            requests.append(Request(prompt, min(self.max_tokens, max(8, answer))))
        return requests


WORKLOADS = {
    "128 requests, 32 slots": Workload(128, 32),
    "512 requests, 256 slots": Workload(512, 256),
    "256 requests, 32 slots, wide": Workload(256, 32, deviation=1.3, max_tokens=1536),
}


class Request(NamedTuple):
    """Prompt tokens and the number of tokens to generate."""

    token_ids: list[int]
    max_tokens: int


class Turn(NamedTuple):
    """One turn of the loop, in seconds: its wall time, of that waiting for the device, and the device's own
    time for the collected step."""

    wall_s: float
    wait_s: float
    device_s: float
    num_tokens: int


class Loop:
    """A fresh scheduler over an executor: nothing is cached from the loop before."""

    def __init__(self, executor: TorchExecutor, token_budget: int, max_chunk_tokens: int = 512) -> None:
        self._executor = executor
        self._scheduler = Scheduler(_policy(token_budget, max_chunk_tokens), executor.capacity)
        self._max_in_flight = executor.capacity.max_in_flight_steps
        self._in_flight: deque[StepPlan] = deque()
        self._number = 0
        self._live: set[str] = set()
        self.parts: dict[str, list[float]] = {"plan": [], "launch": [], "collect": [], "apply": []}

    def add(self, requests: list[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            seq_id = f"r{self._number}"
            self._number += 1
            num_tokens = len(request.token_ids)
            self._executor.add(SequenceInput(seq_id, request.token_ids, num_tokens, GREEDY))
            header = SequenceHeader(
                seq_id,
                "only",
                f"tenant-{self._number % 4}",
                self._number,
                now,
                num_tokens,
                request.max_tokens,
            )
            self._scheduler.add(header, now)
            self._live.add(seq_id)

    @property
    def num_live(self) -> int:
        return len(self._live)

    def turn(self) -> Turn:
        """At most one step launched and one collected."""
        started = time.perf_counter()
        launched = self._launch()
        wait_s, device_s, num_tokens = 0.0, 0.0, 0
        if self._in_flight and (not launched or len(self._in_flight) >= self._max_in_flight):
            begun = time.perf_counter()
            self._executor.wait()
            wait_s = time.perf_counter() - begun
            num_tokens, device_s = self._collect()
        return Turn(time.perf_counter() - started, wait_s, device_s, num_tokens)

    def run(self) -> list[Turn]:
        """Turn until every request is done."""
        turns = []
        while self._live:
            turns.append(self.turn())
        return turns

    def abandon(self) -> None:
        """Forget what is unfinished."""
        while self._in_flight:
            self._in_flight.popleft()
            self._executor.collect()
        for seq_id in self._live:
            self._executor.remove(seq_id)
        self._live.clear()

    def _launch(self) -> bool:
        scheduler, now, begun = self._scheduler, time.monotonic(), time.perf_counter()
        scheduler.claim(scheduler.claim_candidates(now), now)
        plan = scheduler.plan_step(now)
        if plan is None:
            return False
        scheduler.begin(plan)
        planned = time.perf_counter()
        self._executor.launch(plan)
        self._in_flight.append(plan)
        self.parts["plan"].append(planned - begun)
        self.parts["launch"].append(time.perf_counter() - planned)
        return True

    def _collect(self) -> tuple[int, float]:
        begun = time.perf_counter()
        output = self._executor.collect()
        collected = time.perf_counter()
        plan = self._in_flight.popleft()
        applied = self._scheduler.apply_result(to_result(plan, output), time.monotonic())
        self._forget(applied)
        self.parts["collect"].append(collected - begun)
        self.parts["apply"].append(time.perf_counter() - collected)
        failed = [one.error for one in output.rows if one.error]
        if failed:
            raise RuntimeError(f"rows failed: {failed[0]}")
        return (0 if applied.tokens is None else len(applied.tokens.rows)), output.duration_s

    def _forget(self, applied: Applied) -> None:
        for seq_id in applied.released:
            self._executor.remove(seq_id)
        self._live.difference_update(one.seq_id for one in applied.finished)


def _policy(token_budget: int, max_chunk_tokens: int) -> Policy:
    """One class with an objective that never shrinks the batch."""
    only = ClassPolicy(id="only", rank=0, weight=1, slo=Slo(ttft_s=60, tpot_s=10), max_wait_s=600)
    return Policy(
        classes=(only,), step=Step(max_num_batched_tokens=token_budget, max_chunk_tokens=max_chunk_tokens)
    )


def long_contexts(
    batch: int, num_steps: int, vocab_size: int, num_tokens: int = CONTEXT_TOKENS
) -> list[Request]:
    """`batch` requests of `num_tokens` that decode together for a while."""
    r = random.Random(2)
    return [
        Request([r.randint(3, vocab_size - 1) for _ in range(num_tokens)], num_steps) for _ in range(batch)
    ]


class Bench:
    """Collects rows for one model and device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._device = resolve_device(arguments.device)
        self._shape = SHAPES[arguments.model]
        self.rows: list[dict[str, Any]] = []
        began_at = psutil.Process().create_time()
        self.add("start: Python's imports", 0, time.time() - began_at, "s")
        self._model = build_model(self._shape, self._device, arguments.dtype)
        self.add("start: imports and weights", 0, time.time() - began_at, "s")
        self._bandwidth = copy_bandwidth(self._device)
        self.add("copy_bandwidth", 0, self._bandwidth / 1e12, "TB/s")

    def add(self, bench: str, batch: int, value: float, unit: str, floor: float | None = None) -> None:
        row = {
            "bench": bench,
            "engine": self._arguments.label,
            "model": self._arguments.model,
            "batch": batch,
            "value": round(value, 4),
            "unit": unit,
            "floor": None if floor is None else round(floor, 4),
        }
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def executor(self, num_slots: int, max_model_len: int = 2048, swap_bytes: int = 0) -> TorchExecutor:
        given = EngineSettings(
            model="random",
            num_slots=num_slots,
            max_model_len=max_model_len,
            swap_bytes=swap_bytes,
            kv_fraction=self._arguments.kv_fraction,
            attention_backend=self._arguments.attention,
            cuda_graphs=self._arguments.graphs,
            compile_model=self._arguments.compile,
            fuse_linears=self._arguments.fuse,
        )
        self._model.set_attn_implementation("sdpa")  # an engine before this one set its own
        started = time.perf_counter()
        executor = TorchExecutor(describe(self._model, "random"), given)
        self.add("start", num_slots, time.perf_counter() - started, "s")
        return executor

    def decode(self, executor: TorchExecutor, batch: int) -> None:
        """Median wall time of a step in which `batch` rows of 1,024 tokens of context decode."""
        num_steps = self._arguments.steps
        loop = Loop(executor, self._arguments.token_budget)
        loop.add(long_contexts(batch, num_steps + 200, self._shape["vocab_size"]))
        while loop.turn().num_tokens < batch:
            pass
        for _ in range(20):
            loop.turn()
        for times in loop.parts.values():
            times.clear()
        turns = [loop.turn() for _ in range(num_steps)]
        loop.abandon()
        self._add_decode(batch, turns, loop.parts)

    def prefill(self, executor: TorchExecutor, num_tokens: int) -> None:
        """The device's time for one prompt in one step, and the share of a plain matmul's rate."""
        times = []
        for _ in range(4):
            loop = Loop(executor, num_tokens, num_tokens)
            loop.add(long_contexts(1, 1, self._shape["vocab_size"], num_tokens))
            times.append(max(turn.device_s for turn in loop.run()))
            loop.abandon()
        seconds = statistics.median(times[1:])
        rate = prefill_operations(self._shape, num_tokens) / seconds
        self.add("prefill", num_tokens, seconds * 1e3, "ms")
        self.add("prefill_rate", num_tokens, rate / matmul_rate(self._device) * 100, "% of matmul")

    def first_token(self, executor: TorchExecutor) -> None:
        """Seconds from the start of this process to the first token of its first request."""
        loop = Loop(executor, self._arguments.token_budget)
        loop.add(Workload(1, 1).requests(self._shape["vocab_size"]))
        while not loop.turn().num_tokens:
            pass
        started_at = psutil.Process().create_time()
        self.add("start_to_first_token", executor.capacity.num_slots, time.time() - started_at, "s")
        loop.abandon()

    def preempt(self) -> None:
        """See `bench.engine_preempt`."""
        executor = self.executor(NUM_NEIGHBOURS + 2, 3072, swap_bytes=1 << 30)
        PreemptBench(executor, self._shape["vocab_size"]).run(self.add)
        executor.close()

    def prefix(self) -> None:
        """See `bench.engine_prefix`."""
        executor = self.executor(NUM_REQUESTS, 3072)
        policy = _policy(self._arguments.token_budget, 2048)
        prefix_rows(executor, policy, self._shape["vocab_size"], self.add)
        executor.close()

    def transformers(self, num_slots: int) -> None:
        """See `bench.engine_peers`; before an executor has changed the model."""
        from bench.engine_peers import continuous_tokens_per_s, generate_tokens_per_s  # no part of a start

        asked = [(one.token_ids, one.max_tokens) for one in Workload(128, 32).requests(self._shape["vocab_size"])]
        asked = asked[:num_slots]
        rate = generate_tokens_per_s(self._model, asked, 0)
        self.add("generate: static batch", num_slots, rate, "tokens/s")
        rate = continuous_tokens_per_s(self._model, asked, num_slots)
        self.add("transformers: continuous batching", num_slots, rate, "tokens/s")

    def kernels(self, executor: TorchExecutor, batch: int) -> None:
        """Print where a decode step's time goes, by kernel."""
        loop = Loop(executor, self._arguments.token_budget)
        loop.add(long_contexts(batch, 200, self._shape["vocab_size"]))
        while loop.turn().num_tokens < batch:
            pass
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(20):
                loop.turn()
            _synchronize(self._device)
        loop.abandon()
        found = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
        for one in found[:16]:
            each = one.self_device_time_total / 20
            print(f"kernel {batch} {each:9.1f} us/step {one.count / 20:6.1f} x {one.key[:100]}")

    def _add_decode(self, batch: int, turns: list[Turn], parts: dict[str, list[float]]) -> None:
        floor = decode_floor_s(self._shape, batch, self._model.dtype.itemsize) / self._bandwidth * 1e3
        self.add("decode", batch, _median_ms(turn.wall_s for turn in turns), "ms/step", floor)
        self.add("decode_device", batch, _median_ms(turn.device_s for turn in turns), "ms/step", floor)
        self.add("decode_host", batch, _median_ms(turn.wall_s - turn.wait_s for turn in turns), "ms/step")
        for name, times in parts.items():
            self.add(f"decode_host_{name}", batch, _median_ms(times), "ms/step")

    def throughput(self, executor: TorchExecutor, name: str, static: bool = False) -> None:
        """Useful tokens per second over all requests, the better known second of two runs."""
        num_slots = executor.capacity.num_slots
        for _ in range(2):
            requests = WORKLOADS[name].requests(self._shape["vocab_size"])
            _synchronize(self._device)
            started = time.perf_counter()
            turns = self._run(executor, requests, num_slots if static else len(requests))
            elapsed = time.perf_counter() - started
        num_tokens = sum(request.max_tokens for request in requests)
        assert sum(turn.num_tokens for turn in turns) == num_tokens
        label = f"{'static' if static else 'throughput'}: {name}"
        self.add(label, num_slots, num_tokens / elapsed, "tokens/s")
        if not static:
            self.add(f"turns: {name}", num_slots, len(turns), "turns")

    def _run(self, executor: TorchExecutor, requests: list[Request], group: int) -> list[Turn]:
        loop = Loop(executor, self._arguments.token_budget)
        turns: list[Turn] = []
        for begin in range(0, len(requests), group):
            loop.add(requests[begin : begin + group])
            turns += loop.run()
        loop.abandon()
        return turns

    def busy(self, executor: TorchExecutor, name: str) -> None:
        """Share of wall time in which the device runs a kernel or a copy: the union of the profiler's intervals.

        Recording a graph's kernels slows them; the share is therefore also given over the unprofiled time.
        """
        requests = WORKLOADS[name].requests(self._shape["vocab_size"])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            _synchronize(self._device)
            started = time.perf_counter()
            self._run(executor, requests, len(requests))
            _synchronize(self._device)
            elapsed = time.perf_counter() - started
        spans = [
            (event.start_ns(), event.start_ns() + event.duration_ns())
            for event in profile.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA
        ]
        busy_s = union_s(spans)
        self.add(f"busy: {name}", executor.capacity.num_slots, busy_s / elapsed * 100, "%")
        self.add(f"busy_seconds: {name}", executor.capacity.num_slots, busy_s, "s")


def union_s(spans: list[tuple[int, int]]) -> float:
    """The total length of overlapping intervals in nanoseconds, in seconds."""
    total, reached = 0, 0
    for begin, end in sorted(spans):
        begin = max(begin, reached)
        if end > begin:
            total += end - begin
            reached = end
    return total / 1e9


def build_model(shape: dict[str, Any], device: torch.device, dtype: str) -> transformers.PreTrainedModel:
    """A Llama of this shape with random weights, made on the device."""
    config = transformers.LlamaConfig(
        max_position_embeddings=16_384, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5, **shape
    )
    compile_attention_ahead(config, getattr(torch, dtype), device)
    torch.manual_seed(0)
    with torch.device(device), default_dtype(getattr(torch, dtype)):
        return transformers.LlamaForCausalLM(config).eval()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def decode_floor_s(shape: dict[str, Any], batch: int, itemsize: int) -> float:
    """Bytes that one decode step must read: every weight but the embedding's unused rows, keys and values."""
    hidden, mlp, heads = shape["hidden_size"], shape["intermediate_size"], shape["num_attention_heads"]
    kv_width = shape["num_key_value_heads"] * shape["head_dim"]
    layer = hidden * (2 * heads * shape["head_dim"] + 2 * kv_width + 3 * mlp)
    weights = shape["num_hidden_layers"] * layer + shape["vocab_size"] * hidden
    kv = batch * CONTEXT_TOKENS * 2 * kv_width * shape["num_hidden_layers"]
    return float((weights + kv) * itemsize)


def prefill_operations(shape: dict[str, Any], num_tokens: int) -> float:
    """Operations of one prompt: every layer's products and causal attention, and one row of logits."""
    hidden, width = shape["hidden_size"], shape["num_attention_heads"] * shape["head_dim"]
    kv_width = shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * num_tokens * hidden * (2 * kv_width + 3 * shape["intermediate_size"])
    layer += 2 * num_tokens * 2 * width * hidden + 2 * num_tokens**2 * width
    return float(shape["num_hidden_layers"] * layer + 2 * hidden * shape["vocab_size"])


def matmul_rate(device: torch.device) -> float:
    """Operations per second of a large bfloat16 product, the best of several."""
    size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return float(2 * size**3 / min(_timed(lambda: left @ right, device) for _ in range(10)))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy, the best of several."""
    size = 4 << 30 if device.type == "cuda" else 1 << 28
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = [_timed(lambda: target.copy_(source), device) for _ in range(8)]
    return 2 * size / min(times)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    started = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _median_ms(times: Any) -> float:
    return statistics.median(times) * 1e3


def environment(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        found |= {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--model", default="1b", choices=SHAPES)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--label", default="tidegate", help="the rows' `engine`")
    parser.add_argument("--parts", nargs="+", default=["decode", "throughput"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 64, 128, 256])
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--token-budget", type=int, default=2048)
    parser.add_argument("--kv-fraction", type=float, default=0.7)
    parser.add_argument("--attention", default="auto", choices=["auto", "sdpa", "flashinfer"])
    for name in ("graphs", "compile", "fuse"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    arguments = parse()
    bench = Bench(arguments)
    if "transformers" in arguments.parts:
        bench.transformers(min(arguments.batches, key=lambda batch: abs(batch - 32)))
    for num_slots in sorted(_slots(arguments), reverse=True):
        executor = bench.executor(num_slots)
        if "start" in arguments.parts:
            bench.first_token(executor)
        if "decode" in arguments.parts and num_slots == max(arguments.batches):
            for batch in arguments.batches:
                bench.decode(executor, batch)
        if "kernels" in arguments.parts:
            for batch in arguments.batches:
                bench.kernels(executor, min(batch, num_slots))
        for name in arguments.workloads:
            if WORKLOADS[name].num_slots == num_slots:
                _saturate(bench, executor, name, arguments.parts)
        executor.close()
        del executor
        torch.cuda.empty_cache()
    if "prefill" in arguments.parts:
        for num_tokens in (2048, 8192):
            bench.prefill(bench.executor(2, num_tokens + 16), num_tokens)
    if "preempt" in arguments.parts:
        bench.preempt()
    if "prefix" in arguments.parts:
        bench.prefix()
    if arguments.json:
        document = {"environment": environment(resolve_device(arguments.device)), "rows": bench.rows}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _slots(arguments: argparse.Namespace) -> set[int]:
    slots = {max(arguments.batches)} if {"decode", "kernels", "start"} & set(arguments.parts) else set()
    if {"throughput", "busy", "static"} & set(arguments.parts):
        slots |= {WORKLOADS[name].num_slots for name in arguments.workloads}
    return slots


def _saturate(bench: Bench, executor: TorchExecutor, name: str, parts: list[str]) -> None:
    if "throughput" in parts:
        bench.throughput(executor, name)
    if "static" in parts:
        bench.throughput(executor, name, static=True)
    if "busy" in parts:
        bench.busy(executor, name)


if __name__ == "__main__":
    main()
