"""What a shared system prompt saves: `bench.engine --parts prefix`.

64 requests share their first 2,000 tokens and arrive at once, after one that had them too. Time to first token, with
the prefix cache and without it: then nobody announces the hashes of its blocks.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from typing import Final

from bench.engine_preempt import AddRow
from scheduler_worker.core.plan import StepPlan
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.executor import SequenceInput, to_result
from scheduler_worker.protocol.hashing import block_hashes
from scheduler_worker.protocol.messages import SamplingParams

NUM_REQUESTS: Final = 64
NUM_SHARED, NUM_OWN, NUM_NEW = 2000, 50, 16
GREEDY: Final = SamplingParams(temperature=0.0, ignore_eos=True)


class _Run:
    """A fresh scheduler over the executor."""

    def __init__(self, executor: TorchExecutor, policy: Policy, announces: bool) -> None:
        self._executor = executor
        self._scheduler = Scheduler(policy, executor.capacity)
        self._announces = announces
        self._in_flight: deque[StepPlan] = deque()
        self._arrived: dict[str, float] = {}
        self._number = 0
        self.ttft_s: dict[str, float] = {}

    def add(self, tokens: list[int]) -> None:
        self._number += 1
        seq_id, now = f"p{self._number}", time.monotonic()
        hashes = block_hashes(tokens, self._executor.capacity.block_size) if self._announces else ()
        self._executor.add(SequenceInput(seq_id, tokens, len(tokens), GREEDY))
        header = SequenceHeader(
            seq_id, "only", "tenant", self._number, now, len(tokens), NUM_NEW, block_hashes=hashes
        )
        self._scheduler.add(header, now)
        self._arrived[seq_id] = now

    def until_done(self) -> None:
        while self._arrived:
            launched = self._launch()
            if self._in_flight and (not launched or len(self._in_flight) > 1):
                self._collect()

    def _launch(self) -> bool:
        scheduler, now = self._scheduler, time.monotonic()
        scheduler.claim(scheduler.claim_candidates(now), now)
        plan = scheduler.plan_step(now)
        if plan is None:
            return False
        scheduler.begin(plan)
        self._executor.launch(plan)
        self._in_flight.append(plan)
        return True

    def _collect(self) -> None:
        output = self._executor.collect()
        now = time.monotonic()
        for row in output.rows:
            if row.token_ids:
                self.ttft_s.setdefault(row.seq_id, now - self._arrived[row.seq_id])
        applied = self._scheduler.apply_result(to_result(self._in_flight.popleft(), output), now)
        for seq_id in applied.released:
            self._executor.remove(seq_id)
        for one in applied.finished:
            del self._arrived[one.seq_id]


def ttft_s(executor: TorchExecutor, policy: Policy, vocab_size: int, announces: bool) -> list[float]:
    """Of the 64 requests, sorted."""
    draw = random.Random(5)
    shared = [draw.randint(3, vocab_size - 1) for _ in range(NUM_SHARED)]
    run = _Run(executor, policy, announces)
    for number in range(NUM_REQUESTS + 1):
        run.add(shared + [draw.randint(3, vocab_size - 1) for _ in range(NUM_OWN)])
        if number == 0:
            run.until_done()
            run.ttft_s.clear()
    run.until_done()
    return sorted(run.ttft_s.values())


def prefix_rows(executor: TorchExecutor, policy: Policy, vocab_size: int, add: AddRow) -> None:
    """The medians of both, and their ratio; each the second of two runs."""
    medians = {}
    for name, announces in (("without", False), ("with", True)):
        for _ in range(2):
            found = ttft_s(executor, policy, vocab_size, announces)
        medians[name] = statistics.median(found)
        add(f"prefix_ttft_{name}", NUM_REQUESTS, medians[name] * 1e3, "ms")
    add("prefix_speedup", NUM_REQUESTS, medians["without"] / medians["with"], "x")
