"""What one step costs beside the model: `python -m bench.overhead`.

Overhead is the loop's wall time minus the time inside `model.forward`: claiming, planning, booking and
applying by the real scheduler, packing, attention planning, sampling and the report. All rows decode; only
Redis is missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import transformers

from scheduler_worker.core.plan import RowResult, StepResult
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import describe
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import SequenceInput
from scheduler_worker.protocol.messages import SamplingParams

BLOCK_SIZE = 16
PROMPT_TOKENS = 100
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
    """The worker's step loop without its transport: `batch` sequences that never end."""

    def __init__(self, executor: TorchExecutor, batch: int, sampling: SamplingParams) -> None:
        self._executor = executor
        self._scheduler = Scheduler(default_policy(), executor.capacity)
        self._ids = [f"{batch}-{number}" for number in range(batch)]
        for number, seq_id in enumerate(self._ids):
            prompt = [(7 + number * 31 + i) % 1000 for i in range(PROMPT_TOKENS)]
            executor.add(SequenceInput(seq_id, prompt, PROMPT_TOKENS, sampling))
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
        rows = tuple(
            [RowResult(one.seq_id, len(one.token_ids), one.stopped, one.error) for one in output.rows]
        )
        result = StepResult(output.step, rows, output.duration_s, output.filled_blocks)
        applied = scheduler.apply_result(result, time.monotonic())
        num_tokens = 0 if applied.tokens is None else len(applied.tokens.rows)
        return time.perf_counter() - started, output.forward_s, num_tokens

    def close(self) -> None:
        for seq_id in self._ids:
            self._executor.remove(seq_id)


def _header(seq_id: str, number: int) -> SequenceHeader:
    now = time.monotonic()
    classes = list(default_policy().classes)
    class_id = classes[number % len(classes)].id
    return SequenceHeader(seq_id, class_id, f"tenant-{number % 4}", number + 1, now, PROMPT_TOKENS, 900)


def measure(executor: TorchExecutor, batch: int, kind: str, steps: int) -> dict[str, object]:
    """Median overhead of one step, in milliseconds."""
    loop = Loop(executor, batch, SAMPLING[kind])
    times = [loop.step() for _ in range(steps)][steps // 5 :]
    loop.close()
    overheads = [(wall - forward) * 1e3 for wall, forward, _ in times]
    return {
        "bench": "overhead",
        "engine": "tidegate",
        "batch": batch,
        "sampling": kind,
        "overhead_ms": round(statistics.median(overheads), 3),
        "p95_ms": round(statistics.quantiles(overheads, n=20)[-1], 3),
        "forward_ms": round(statistics.median(forward for _, forward, _ in times) * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vocab", type=int, default=8192, help="vocabulary of the small model (default 8192)"
    )
    parser.add_argument("--model", help="a model of your own instead, by path")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--sampling", nargs="+", choices=SAMPLING, default=list(SAMPLING))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    executor = build(arguments.model, arguments.vocab, max(arguments.batches))
    for batch in arguments.batches:
        for kind in arguments.sampling:
            print(json.dumps(measure(executor, batch, kind, arguments.steps)), flush=True)


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
