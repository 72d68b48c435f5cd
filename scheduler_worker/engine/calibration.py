"""Measures in a few seconds what this machine can do with a model: prefill, and decode steps by batch size.

    python -m scheduler_worker.engine.calibration --model DIR

Prints one JSON object; see `Calibration`. It drives the same executor that serves requests. Whatever else runs on
the machine only makes it slower, so the fastest of a few rounds counts, and how far the rounds are apart is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

from scheduler_worker.core.plan import Chunk, StepPlan
from scheduler_worker.engine import load_executor
from scheduler_worker.engine.loading import resolve_device
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import Executor, SequenceInput
from scheduler_worker.protocol.messages import SamplingParams

CONTEXT_TOKENS = 128
NUM_STEPS = 5
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
ENOUGH_S = 0.6
"""A larger batch than one whose step takes this long is of no use to anyone who waits for tokens."""
MIN_ROUNDS = 2
MAX_ROUNDS = 3
AGREED = 1.15
"""Rounds end when the second fastest took at most so many times as long as the fastest."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Medians of a few steps on an otherwise idle engine.

    `decode_step_s` is by batch size, with `context_tokens` of context each. `prefill_tokens_per_s` is of
    prompts of that length, computed one at a time. Of `num_rounds` rounds the fastest counts; `spread` is how many
    times as long the second fastest took: far over 1 on a machine that was busy with something else.
    """

    model: str
    device: str
    device_name: str
    dtype: str
    context_tokens: int
    prefill_tokens_per_s: float
    decode_step_s: dict[int, float]
    num_rounds: int = 1
    spread: float = 1.0


def calibrate(executor: Executor) -> Calibration:
    """Measure in rounds until the two fastest agree."""
    bench = _Bench(executor)
    rounds = [_round(executor, bench) for _ in range(MIN_ROUNDS)]
    while spread_of(rounds) > AGREED and len(rounds) < MAX_ROUNDS:
        rounds.append(_round(executor, bench))
    return best_of(rounds)


def best_of(rounds: list[Calibration]) -> Calibration:
    """The fastest that each figure was in any round."""
    sizes = sorted({size for one in rounds for size in one.decode_step_s})
    return replace(
        rounds[0],
        prefill_tokens_per_s=max(one.prefill_tokens_per_s for one in rounds),
        decode_step_s={
            size: min(one.decode_step_s[size] for one in rounds if size in one.decode_step_s)
            for size in sizes
        },
        num_rounds=len(rounds),
        spread=spread_of(rounds),
    )


def spread_of(rounds: list[Calibration]) -> float:
    """How many times as long the second fastest round took as the fastest, for the same work."""
    sizes = set[int].intersection(*(set(one.decode_step_s) for one in rounds))
    times = sorted(
        one.context_tokens / one.prefill_tokens_per_s + sum(one.decode_step_s[size] for size in sizes)
        for one in rounds
    )
    return times[1] / times[0]


def _round(executor: Executor, bench: _Bench) -> Calibration:
    """Fill the batch sequence by sequence, timing prefills and then steps at each batch size."""
    sizes = [size for size in BATCH_SIZES if size <= bench.max_sequences()]
    decode_step_s: dict[int, float] = {}
    prefills_s: list[float] = []
    bench.warm_up()
    for size in sizes:
        prefills_s += [bench.prefill() for _ in range(size - bench.num_sequences)]
        decode_step_s[size] = statistics.median(bench.decode() for _ in range(NUM_STEPS))
        if decode_step_s[size] > ENOUGH_S:
            break
    bench.clear()
    info = executor.info
    return Calibration(
        model=info.model,
        device=info.device,
        device_name=info.device_name,
        dtype=info.dtype,
        context_tokens=CONTEXT_TOKENS,
        prefill_tokens_per_s=CONTEXT_TOKENS / statistics.median(prefills_s),
        decode_step_s=decode_step_s,
    )


class _Bench:
    """Plans steps by hand: prompts of `CONTEXT_TOKENS` tokens, each with blocks of its own."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._steps = count()
        self._positions: list[int] = []
        block_size = executor.capacity.block_size
        self._blocks_each = -(-(CONTEXT_TOKENS + 2 * NUM_STEPS * len(BATCH_SIZES)) // block_size)

    @property
    def num_sequences(self) -> int:
        return len(self._positions)

    def max_sequences(self) -> int:
        capacity = self._executor.capacity
        return min(capacity.num_slots, capacity.num_blocks // self._blocks_each)

    def warm_up(self) -> None:
        """First calls allocate and choose kernels; they are not what later ones cost."""
        self.prefill()
        for _ in range(NUM_STEPS):
            self.decode()
        self.clear()

    def prefill(self) -> float:
        """One more sequence, its whole prompt in one step; returns the step's time in seconds."""
        slot = len(self._positions)
        seq_id = f"calibration-{slot}"
        prompt = [(7 * slot + position) % 1000 + 100 for position in range(CONTEXT_TOKENS)]
        sampling = SamplingParams(temperature=0.8, max_tokens=1 << 20, ignore_eos=True, seed=slot)
        self._executor.add(SequenceInput(seq_id, prompt, CONTEXT_TOKENS, sampling))
        first_block = slot * self._blocks_each
        blocks = tuple(range(first_block, first_block + self._blocks_each))
        chunk = Chunk(seq_id, slot, 0, CONTEXT_TOKENS, samples=True, first=True, new_blocks=blocks)
        self._positions.append(CONTEXT_TOKENS)
        return self._run((chunk,))

    def decode(self) -> float:
        """One token for every sequence; returns the step's time in seconds."""
        elapsed_s = self._run(tuple(self._decode_chunks()))
        self._positions = [position + 1 for position in self._positions]
        return elapsed_s

    def _decode_chunks(self) -> Iterator[Chunk]:
        for slot, position in enumerate(self._positions):
            yield Chunk(f"calibration-{slot}", slot, position, 1, samples=True)

    def clear(self) -> None:
        for slot in range(len(self._positions)):
            self._executor.remove(f"calibration-{slot}")
        self._positions.clear()

    def _run(self, chunks: tuple[Chunk, ...]) -> float:
        started = time.perf_counter()
        self._executor.launch(
            StepPlan(step=next(self._steps), policy_version=0, planned_at=0.0, chunks=chunks)
        )
        rows = self._executor.collect().rows
        elapsed_s = time.perf_counter() - started
        if errors := [row.error for row in rows if row.error]:
            raise RuntimeError(f"the model failed while it was measured: {errors[0]}")
        return elapsed_s


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scheduler_worker.engine.calibration", description=__doc__
    )
    parser.add_argument("--model", required=True, help="a model directory or hub id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--num-slots", type=int, help="largest batch; default 32 on a CPU, 128 on a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    arguments = vars(parser.parse_args())
    output = arguments.pop("json")
    on_gpu = resolve_device(arguments["device"]).type == "cuda"
    arguments["num_slots"] = arguments["num_slots"] or (128 if on_gpu else 32)
    executor = load_executor(EngineSettings(**arguments))
    try:
        result = json.dumps(asdict(calibrate(executor)))
    finally:
        executor.close()
    if output:
        output.write_text(result)
    print(result)


if __name__ == "__main__":
    main()
