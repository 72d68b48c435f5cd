"""What one preempted sequence costs the sequences beside it, and when copying beats computing again.

`bench.engine --parts preempt`. Neighbours of 1,024 tokens decode, two steps in flight; a victim leaves and comes
back, by copy or by computing again. What they feel is the time by which three steps from that one on exceed three
ordinary ones.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, Protocol

from scheduler_worker.core.plan import Chunk, StepPlan, SwapIn, SwapOut
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.executor import SequenceInput, StepOutput
from scheduler_worker.protocol.messages import SamplingParams

NUM_NEIGHBOURS: Final = 32
NEIGHBOUR_TOKENS: Final = 1024
VICTIM_TOKENS: Final = (64, 128, 256, 512, 1024, 2048)
NUM_ROUNDS: Final = 4
PAUSE_STEPS: Final = 6
GREEDY: Final = SamplingParams(temperature=0.0, ignore_eos=True)


class AddRow(Protocol):
    """`Bench.add`."""

    def __call__(self, bench: str, batch: int, value: float, unit: str, floor: float | None = None) -> None: ...


class _Row:
    """A sequence of known blocks in a known slot."""

    def __init__(self, seq_id: str, slot: int, blocks: range, num_tokens: int) -> None:
        self.seq_id, self.slot, self.num_tokens = seq_id, slot, num_tokens
        self.blocks = tuple(blocks)
        self.start = 0

    def chunk(self, num_tokens: int, samples: bool, first: bool) -> Chunk:
        begin, self.start = self.start, self.start + num_tokens
        return Chunk(self.seq_id, self.slot, begin, num_tokens, samples, first, self.blocks if first else ())


class PreemptBench:
    """Plans by hand: the scheduler decides when to preempt, this measures what it costs."""

    def __init__(self, executor: TorchExecutor, vocab_size: int) -> None:
        self._executor = executor
        self._draw = random.Random(3)
        self._vocab_size = vocab_size
        self._step = 0
        self._in_flight = 0
        self._next_block = 0
        self._neighbours = [self._add(f"n{i}", i, NEIGHBOUR_TOKENS, 2000) for i in range(NUM_NEIGHBOURS)]
        for row in self._neighbours:
            self._prefill(row, 0)

    def run(self, add: AddRow) -> None:
        """Rows for every length of the victim."""
        capacity = self._executor.capacity
        add("swap_block", capacity.block_size, capacity.swap_block_s * 1e6, "us")
        for num_tokens in VICTIM_TOKENS:
            num_blocks = -(-num_tokens // capacity.block_size)
            if num_blocks > capacity.num_swap_blocks:
                continue
            costs = self._costs(num_tokens)
            for name, (extra_s, usual_s) in costs.items():
                add(f"preempt_{name}", num_tokens, extra_s * 1e3, "ms")
                add(f"preempt_{name}_rise", num_tokens, extra_s / usual_s * 100, "% of a step")
            add("preempt_copy_predicted", num_tokens, 2e3 * num_blocks * capacity.swap_block_s, "ms")

    def _costs(self, num_tokens: int) -> dict[str, tuple[float, float]]:
        found: dict[str, list[tuple[float, float]]] = {"swap_out": [], "swap_in": [], "recompute": []}
        for number in range(NUM_ROUNDS + 1):
            victim = self._add(f"v{num_tokens}-{number}", NUM_NEIGHBOURS, num_tokens, 200)
            self._prefill(victim, 1)
            once = {
                "swap_out": self._around(lambda row=victim: self._swap_out(row)),
                "swap_in": self._around(lambda row=victim: self._swap_in(row)),
                "recompute": self._around(lambda row=victim: self._recompute(row)),
            }
            self._drain()
            self._executor.remove(victim.seq_id)
            if number:  # the first round warms up
                for name, cost in once.items():
                    found[name].append(cost)
        return {
            name: (statistics.median(cost[0] for cost in costs), statistics.median(cost[1] for cost in costs))
            for name, costs in found.items()
        }

    def _around(self, special: Callable[[], StepPlan]) -> tuple[float, float]:
        """Ordinary steps, one special, ordinary ones: what it took more than they, and what one of them takes."""
        ends = [self._turn(plan) for plan in self._ordinary(PAUSE_STEPS + 2)]
        ends.append(self._turn(special()))
        ends += [self._turn(plan) for plan in self._ordinary(PAUSE_STEPS)]
        took = [later - earlier for earlier, later in pairwise(ends)]
        usual = statistics.median(took[2:PAUSE_STEPS])
        around = took[PAUSE_STEPS + 1 : PAUSE_STEPS + 5]  # collected one turn after it was launched
        return sum(around) - len(around) * usual, usual

    def _ordinary(self, count: int) -> Iterator[StepPlan]:
        for _ in range(count):
            yield self._plan()

    def _swap_out(self, victim: _Row) -> StepPlan:
        return self._plan(swap_outs=(SwapOut(victim.seq_id, self._held(victim)),))

    def _swap_in(self, victim: _Row) -> StepPlan:
        victim.slot = NUM_NEIGHBOURS + 1
        back = SwapIn(victim.seq_id, victim.slot, victim.blocks)
        return self._plan(victim.chunk(1, True, False), swap_ins=(back,))

    def _recompute(self, victim: _Row) -> StepPlan:
        num_tokens, victim.start = victim.num_tokens, 0
        return self._plan(victim.chunk(num_tokens, False, True), evicted=(victim.seq_id,))

    def _held(self, victim: _Row) -> tuple[int, ...]:
        return victim.blocks[: -(-victim.start // self._executor.capacity.block_size)]

    def _plan(self, *more: Chunk, **moves: tuple[object, ...]) -> StepPlan:
        chunks = (*(row.chunk(1, True, False) for row in self._neighbours), *more)
        return self._numbered(chunks, **moves)

    def _numbered(self, chunks: tuple[Chunk, ...], **moves: tuple[object, ...]) -> StepPlan:
        self._step += 1
        return StepPlan(step=self._step, policy_version=1, planned_at=0.0, chunks=chunks, **moves)  # type: ignore[arg-type]

    def _turn(self, plan: StepPlan) -> float:
        """Launch, then collect the step before; the time when that was there."""
        self._executor.launch(plan)
        self._in_flight += 1
        if self._in_flight > 1:
            self._collect()
        return time.perf_counter()

    def _collect(self) -> StepOutput:
        self._executor.wait()
        self._in_flight -= 1
        output = self._executor.collect()
        failed = [row.error for row in output.rows if row.error]
        if failed:
            raise RuntimeError(f"rows failed: {failed[0]}")
        return output

    def _drain(self) -> None:
        while self._in_flight:
            self._collect()

    def _add(self, seq_id: str, slot: int, num_tokens: int, num_new: int) -> _Row:
        """The last one's blocks are reused once its place is the victim's."""
        size = self._executor.capacity.block_size
        begin = self._next_block
        blocks = range(begin, begin + -(-(num_tokens + num_new) // size))
        if slot < NUM_NEIGHBOURS:
            self._next_block = blocks.stop
        tokens = [self._draw.randint(3, self._vocab_size - 1) for _ in range(num_tokens)]
        self._executor.add(SequenceInput(seq_id, tokens, num_tokens, GREEDY))
        return _Row(seq_id, slot, blocks, num_tokens)

    def _prefill(self, row: _Row, num_sampled: int) -> None:
        """All tokens but the last in one step; a neighbour's last one begins its decoding."""
        self._drain()
        self._turn(self._numbered((row.chunk(row.num_tokens - 1, False, True),)))
        self._drain()
        if num_sampled:
            self._turn(self._numbered((row.chunk(1, True, False),)))
            self._drain()
