"""A planner so simple that it is right by inspection: every known sequence gets its tokens in every step."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import Chunk, FilledBlock, StepPlan, SwapIn, SwapOut
from scheduler_worker.executor import Executor, RowOutput, SequenceInput, StepOutput
from scheduler_worker.protocol.messages import SamplingParams


@dataclass
class Planned:
    """A sequence as the planner sees it: counts, a slot and blocks."""

    seq_id: str
    num_tokens: int
    max_new: int
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    output: list[int] = field(default_factory=list)
    rows: list[RowOutput] = field(default_factory=list)
    error: str | None = None
    done: bool = False
    first: bool = True
    swapped: bool = False

    @property
    def decodes(self) -> bool:
        """Whether it computes its last token, in the slot that it has."""
        is_placed = self.slot is not None and not self.swapped and not self.first
        return is_placed and self.num_tokens - self.num_computed == 1


class HandPlanner:
    """Plans, launches and collects one step at a time; chunks of at most `chunk_size` tokens.

    `by_columns`: rows that decode come first and by columns, as in the scheduler's plans.
    """

    def __init__(self, executor: Executor, chunk_size: int = 1 << 30, by_columns: bool = False) -> None:
        self.executor = executor
        self.chunk_size = chunk_size
        self.by_columns = by_columns
        capacity = executor.capacity
        self.block_size = capacity.block_size
        self.free_blocks = list(range(capacity.num_blocks))
        self.free_slots = list(range(capacity.num_slots))
        self.sequences: dict[str, Planned] = {}
        self.step_number = 0
        self.swap_outs: list[SwapOut] = []
        self.evicted: list[str] = []
        self.filled: list[FilledBlock] = []
        self.released: list[int] = []

    def add(
        self,
        seq_id: str,
        prompt: list[int],
        max_new: int = 8,
        sampling: SamplingParams | None = None,
        generated: list[int] | None = None,
        cached_blocks: list[int] | None = None,
    ) -> Planned:
        tokens = [*prompt, *(generated or [])]
        sampling = sampling or SamplingParams(temperature=0.0, ignore_eos=True)
        self.executor.add(SequenceInput(seq_id, tokens, len(prompt), sampling))
        planned = Planned(seq_id, len(tokens), max_new, output=list(generated or []))
        if cached_blocks:
            planned.blocks = list(cached_blocks)
            planned.num_computed = len(cached_blocks) * self.block_size
        self.sequences[seq_id] = planned
        return planned

    def step(self) -> StepOutput:
        """One step over every sequence that is not done and has not been parked in this step."""
        plan = self.plan()
        self.executor.launch(plan)
        return self.take(self.executor.collect())

    def plan(self) -> StepPlan:
        swap_ins: list[SwapIn] = []
        parked = {swap.seq_id for swap in self.swap_outs} | set(self.evicted)
        active = [s for s in self.sequences.values() if not s.done and s.seq_id not in parked]
        num_decodes = 0
        if self.by_columns:
            active.sort(key=lambda one: not one.decodes)
            num_decodes = sum(one.decodes for one in active)
        chunks = tuple(self._chunk(sequence, swap_ins) for sequence in active)
        plan = StepPlan(
            step=self.step_number,
            policy_version=1,
            planned_at=0.0,
            chunks=chunks,
            swap_outs=tuple(self.swap_outs),
            swap_ins=tuple(swap_ins),
            evicted=tuple(self.evicted),
            num_lockstep=num_decodes,
        )
        self.step_number += 1
        self.swap_outs, self.evicted = [], []
        return plan._replace(chunks=StepChunks.of(plan)) if self.by_columns else plan

    def take(self, output: StepOutput) -> StepOutput:
        for row in output.rows:
            planned = self.sequences[row.seq_id]
            planned.rows.append(row)
            planned.output += row.token_ids
            planned.num_tokens += len(row.token_ids)
            planned.error = planned.error or row.error
            if row.stopped or row.error or len(planned.output) >= planned.max_new:
                self._finish(planned)
        self.filled += output.filled_blocks
        return output

    def run(self, max_steps: int = 400) -> dict[str, list[int]]:
        """Step until everything is done; the output of every sequence."""
        for _ in range(max_steps):
            if all(sequence.done for sequence in self.sequences.values()):
                return {seq_id: sequence.output for seq_id, sequence in self.sequences.items()}
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def cancel(self, seq_id: str) -> None:
        self._finish(self.sequences[seq_id])

    def swap_out(self, seq_id: str) -> None:
        """Checkpoint the sequence in the next step; it comes back in the one after."""
        planned = self.sequences[seq_id]
        self.swap_outs.append(SwapOut(seq_id, tuple(planned.blocks)))
        planned.swapped = True
        self._park(planned)

    def evict(self, seq_id: str) -> None:
        """Drop the sequence's blocks in the next step; it is recomputed from the one after."""
        planned = self.sequences[seq_id]
        self.evicted.append(seq_id)
        planned.first, planned.num_computed = True, 0
        self._park(planned)

    def _park(self, planned: Planned) -> None:
        assert planned.slot is not None
        # Blocks and slots are handed out from the front: a parked sequence comes back elsewhere.
        self.free_blocks += planned.blocks
        self.free_slots.append(planned.slot)
        planned.blocks, planned.slot = [], None

    def _finish(self, planned: Planned) -> None:
        planned.done = True
        if planned.slot is not None:
            self._park(planned)
        self.executor.remove(planned.seq_id)

    def _chunk(self, planned: Planned, swap_ins: list[SwapIn]) -> Chunk:
        if planned.slot is None:
            planned.slot = self.free_slots.pop(0)
        if planned.swapped:
            self._grow(planned, planned.num_computed)
            swap_ins.append(SwapIn(planned.seq_id, planned.slot, tuple(planned.blocks)))
            planned.swapped = False
        start = planned.num_computed
        num_tokens = min(self.chunk_size, planned.num_tokens - start)
        cached = list(planned.blocks) if planned.first else []
        new_blocks = cached + self._grow(planned, start + num_tokens)
        chunk = Chunk(
            seq_id=planned.seq_id,
            slot=planned.slot,
            start=start,
            num_tokens=num_tokens,
            samples=start + num_tokens == planned.num_tokens,
            first=planned.first,
            new_blocks=tuple(new_blocks),
        )
        planned.num_computed += num_tokens
        planned.first = False
        return chunk

    def _grow(self, planned: Planned, num_tokens: int) -> list[int]:
        wanted = -(-num_tokens // self.block_size) - len(planned.blocks)
        new = [self.free_blocks.pop(0) for _ in range(max(0, wanted))]
        planned.blocks += new
        return new
