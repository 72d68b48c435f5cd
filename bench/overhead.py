"""What one step costs beside the model: `python -m bench.overhead`.

Overhead is the loop's wall time minus the time inside `model.forward`; sampling, packing, attention planning
and the report count as overhead. The scheduler here is a few lines that decode every row; add the real one's
time to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import transformers

from scheduler_worker.core.plan import Chunk, StepPlan
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


class DecodeLoop:
    """The least that can drive an executor: prefill all rows, then one token a row and step."""

    def __init__(self, executor: TorchExecutor, batch: int, sampling: SamplingParams) -> None:
        self._executor = executor
        self._step = 0
        self._ids = [f"s{slot}" for slot in range(batch)]
        self._per_row = executor.capacity.num_blocks // batch
        self._length = PROMPT_TOKENS
        for slot, seq_id in enumerate(self._ids):
            prompt = [(7 + slot * 31 + i) % 1000 for i in range(PROMPT_TOKENS)]
            executor.add(SequenceInput(seq_id, prompt, PROMPT_TOKENS, sampling))
        self._run([self._prefill(slot) for slot in range(batch)])

    def decode(self) -> tuple[float, float]:
        """One step; its wall time and the forward pass's, in seconds."""
        started = time.perf_counter()
        start = self._length
        if start % BLOCK_SIZE:
            chunks = [Chunk(seq_id, slot, start, 1, True) for slot, seq_id in enumerate(self._ids)]
        else:
            index = start // BLOCK_SIZE
            chunks = [
                Chunk(seq_id, slot, start, 1, True, False, (slot * self._per_row + index,))
                for slot, seq_id in enumerate(self._ids)
            ]
        forward_s = self._run(chunks)
        self._length += 1
        return time.perf_counter() - started, forward_s

    def close(self) -> None:
        for seq_id in self._ids:
            self._executor.remove(seq_id)

    def _prefill(self, slot: int) -> Chunk:
        num_blocks = -(-PROMPT_TOKENS // BLOCK_SIZE)
        blocks = tuple(range(slot * self._per_row, slot * self._per_row + num_blocks))
        return Chunk(self._ids[slot], slot, 0, PROMPT_TOKENS, True, True, blocks)

    def _run(self, chunks: list[Chunk]) -> float:
        self._step += 1
        self._executor.launch(StepPlan(self._step, 1, 0.0, tuple(chunks)))
        return self._executor.collect().forward_s


def measure(executor: TorchExecutor, batch: int, kind: str, steps: int) -> dict[str, object]:
    """Median overhead of one step, in milliseconds."""
    loop = DecodeLoop(executor, batch, SAMPLING[kind])
    times = [loop.decode() for _ in range(steps)][steps // 5 :]
    loop.close()
    overheads = [(wall - forward) * 1e3 for wall, forward in times]
    return {
        "bench": "overhead",
        "engine": "tidegate",
        "batch": batch,
        "sampling": kind,
        "overhead_ms": round(statistics.median(overheads), 3),
        "p95_ms": round(statistics.quantiles(overheads, n=20)[-1], 3),
        "forward_ms": round(statistics.median(forward for _, forward in times) * 1e3, 3),
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
