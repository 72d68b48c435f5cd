"""A recorded run of the real engine: `python -m bench.record_steps --model FOLDER --out steps.csv`.

Requests of mixed lengths come and go while the real scheduler fills the steps; one line a step: its shape, the
seconds it took, and the CPU's seconds, which other processes on the machine do not stretch. Then the cost model is
fitted online to the recording, as the worker does: it predicts each step before it learns from it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from bench.recorded_steps import Recorded, errors_of, read, write
from scheduler_worker.core.policy import ClassPolicy, Policy, Slo, Step
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import load_model
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import SequenceInput, to_result
from scheduler_worker.protocol.messages import SamplingParams

GREEDY: Final = SamplingParams(temperature=0.0, ignore_eos=True)
SHORTEST, LONGEST = 16, 600
FEWEST, MOST = 10, 150


class Recording:
    """The worker's loop without its transport, one step in flight, under a load that rises and falls."""

    def __init__(self, executor: TorchExecutor, seed: int, chance: float) -> None:
        self._executor = executor
        self._scheduler = Scheduler(_policy(), executor.capacity)
        self._draw = Random(f"record-{seed}")
        self._chance = chance
        self._number = 0

    def steps(self, num_steps: int) -> Iterator[Recorded]:
        """So many steps. Requests arrive by chance, at up to twice the usual rate and down to none."""
        for index in range(num_steps):
            tide = 1.0 - abs(1.0 - (index / 300) % 2.0)
            if self._number == 0 or self._draw.random() < 2.0 * tide * self._chance:
                self._arrive()
            while (recorded := self._step()) is None:
                self._arrive()
            yield recorded

    def _arrive(self) -> None:
        self._number += 1
        seq_id, num_prompt = f"r{self._number}", int(SHORTEST * (LONGEST / SHORTEST) ** self._draw.random())
        tokens = [self._draw.randrange(100, 40_000) for _ in range(num_prompt)]
        self._executor.add(SequenceInput(seq_id, tokens, num_prompt, GREEDY))
        now, num_output = time.monotonic(), self._draw.randint(FEWEST, MOST)
        header = SequenceHeader(seq_id, "only", "tenant", self._number, now, num_prompt, num_output)
        self._scheduler.add(header, now)

    def _step(self) -> Recorded | None:
        scheduler, now = self._scheduler, time.monotonic()
        scheduler.claim(scheduler.claim_candidates(now), now)
        plan = scheduler.plan_step(now)
        if plan is None:
            return None
        scheduler.begin(plan)
        began = time.process_time()
        self._executor.launch(plan)
        output = self._executor.collect()
        cpu_s = time.process_time() - began
        result = to_result(plan, output)
        for seq_id in scheduler.apply_result(result, time.monotonic()).released:
            self._executor.remove(seq_id)
        return Recorded(plan.shape, output.duration_s, cpu_s)


def _policy() -> Policy:
    """One class whose chunks take up to half a second."""
    only = ClassPolicy(id="only", rank=0, weight=1, slo=Slo(ttft_s=5.0, tpot_s=0.5))
    return Policy(classes=(only,), step=Step(max_num_batched_tokens=1024, max_chunk_tokens=512))


def _executor(options: argparse.Namespace) -> TorchExecutor:
    num_slots, num_blocks = options.slots, 64 * options.slots
    settings = EngineSettings(
        model=options.model,
        device="cpu",
        threads=options.threads,
        num_slots=num_slots,
        num_blocks=num_blocks,
        block_size=16,
        self_check=False,
    )
    return TorchExecutor(load_model(settings), settings)


def main() -> None:
    """Record, write, fit, say the errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a model; without it an existing recording is fitted")
    parser.add_argument("--out", type=Path, required=True, help="the recording")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--chance", type=float, default=0.1, help="of an arrival at a step, on average")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.model:
        recording = Recording(_executor(options), options.seed, options.chance)
        write(options.out, recording.steps(options.steps))
    steps = read(options.out)
    for name, pairs in (
        ("seconds", [(one.shape, one.seconds) for one in steps]),
        ("CPU seconds", [(one.shape, one.cpu_seconds) for one in steps]),
    ):
        found = errors_of(pairs)
        print(
            f"{name}: {found.num_steps} steps after warm-up, MAE {found.mae:.1%} of the mean step, "
            f"mean relative error {found.mape:.1%}"
        )


if __name__ == "__main__":
    main()
