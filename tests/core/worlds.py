"""A fake device for the core's tests: it runs plans, checks them as an executor would, decides where answers end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.invariants import check_all
from scheduler_worker.core.plan import (
    Applied,
    Capacity,
    Chunk,
    Event,
    EventKind,
    Finished,
    RowResult,
    StepPlan,
    StepResult,
)
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader

FIGURES = {"base_s": 0.002, "decode_row_s": 1e-5, "prefill_token_s": 1e-5, "kv_token_s": 1e-8, "num_observed": 1000.0}


def a_capacity(**changes: float) -> Capacity:
    """Eight slots, 64 blocks of 16 tokens, one step in flight."""
    values = {"num_slots": 8, "num_blocks": 64, "block_size": 16, "max_model_len": 1024, **changes}
    return Capacity(**values)  # type: ignore[arg-type]


@dataclass
class World:
    """A scheduler, its device and its clock."""

    policy: Policy = field(default_factory=default_policy)
    capacity: Capacity = field(default_factory=a_capacity)
    lengths: dict[str, int] = field(default_factory=dict)
    checks: bool = True
    now: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.policy, self.capacity, cost_model=CostModel(FIGURES))
        self.launched: list[StepPlan] = []
        self.events: list[Event] = []
        self.finished: dict[str, Finished] = {}
        self.emitted: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.checkpoints: dict[str, int] = {}
        self.slots: dict[int, str] = {}
        self.computed: dict[str, int] = {}
        self.cached_prefix: dict[str, int] = {}
        self.arrivals = 0
        self.plans: list[StepPlan] = []
        self.released: list[str] = []

    def add(
        self,
        seq_id: str,
        class_id: str = "low",
        *,
        prompt: int = 16,
        max_tokens: int = 8,
        length: int | None = None,
        tenant: str = "t",
        at: float | None = None,
        **more: object,
    ) -> Applied:
        """A request arrives now; its answer ends after `length` tokens (None: at max_tokens)."""
        self.arrivals += 1
        header = SequenceHeader(
            seq_id=seq_id,
            class_id=class_id,
            tenant=tenant,
            arrival_number=self.arrivals,
            arrived_at=self.now if at is None else at,
            num_prompt_tokens=prompt,
            max_tokens=max_tokens,
            **more,  # type: ignore[arg-type]
        )
        if length is not None:
            self.lengths[seq_id] = length
        return self.take(self.scheduler.add(header, self.now))

    def take(self, applied: Applied) -> Applied:
        """Keep what a verb returned, as the shell would."""
        self.events.extend(applied.events)
        for one in applied.finished:
            self.finished[one.seq_id] = one
        if applied.tokens is not None:
            for seq_id, num_tokens in applied.tokens.rows:
                self.emitted[seq_id] = self.emitted.get(seq_id, 0) + num_tokens
        for seq_id in applied.released:
            self.released.append(seq_id)
            self.tables.pop(seq_id, None)
            self.checkpoints.pop(seq_id, None)
        if self.checks:
            check_all(self.scheduler)
        return applied

    def claim(self) -> tuple[str, ...]:
        """Claim what the scheduler wants, and win every race."""
        wanted = self.scheduler.claim_candidates(self.now)
        self.scheduler.claim(wanted, self.now)
        return wanted

    def launch(self) -> StepPlan | None:
        """Claim, plan and begin one step."""
        self.claim()
        plan = self.scheduler.plan_step(self.now)
        if plan is not None:
            self.scheduler.begin(plan)
            self.execute(plan)
            self.plans.append(plan)
            self.events.extend(plan.events)
            self.launched.append(plan)
            if self.checks:
                check_all(self.scheduler)
        return plan

    def execute(self, plan: StepPlan) -> None:
        """What a device does with the tables, with every check that it could make."""
        for copy in plan.swap_outs:
            assert self.tables[copy.seq_id][: len(copy.blocks)] == list(copy.blocks)
            self.checkpoints[copy.seq_id] = len(copy.blocks)
        for gone in (*(copy.seq_id for copy in plan.swap_outs), *plan.evicted):
            self.tables.pop(gone, None)
        for copy_in in plan.swap_ins:
            assert self.checkpoints.pop(copy_in.seq_id) == len(copy_in.blocks)
            self.tables[copy_in.seq_id] = list(copy_in.blocks)
        names = [chunk.seq_id for chunk in plan.chunks]
        assert len(set(names)) == len(names), "two chunks of one sequence in a step"
        assert len({chunk.slot for chunk in plan.chunks}) == len(names), "two sequences in one slot"
        for chunk in plan.chunks:
            self._run(chunk)

    def _run(self, chunk: Chunk) -> None:
        if chunk.first:
            self.tables[chunk.seq_id] = list(chunk.new_blocks)
        else:
            self.tables[chunk.seq_id].extend(chunk.new_blocks)
        num_tokens = chunk.start + chunk.num_tokens
        assert num_tokens <= len(self.tables[chunk.seq_id]) * self.capacity.block_size, "tokens without blocks"

    def land(self, failed: Iterable[str] = (), duration_s: float | None = None) -> Applied:
        """The oldest launched step ends."""
        plan = self.launched.pop(0)
        took = plan.predicted_s if duration_s is None else duration_s
        self.now += took
        rows = tuple(self._row(chunk, chunk.seq_id in failed) for chunk in plan.chunks)
        return self.take(self.scheduler.apply_result(StepResult(plan.step, rows, took), self.now))

    def _row(self, chunk: Chunk, fails: bool) -> RowResult:
        if fails:
            return RowResult(chunk.seq_id, 0, error="a bad row")
        if not chunk.samples:
            return RowResult(chunk.seq_id, 0)
        known = self.emitted.get(chunk.seq_id, 0) + 1
        return RowResult(chunk.seq_id, 1, stopped=known >= self.lengths.get(chunk.seq_id, 1 << 30))

    def step(self) -> StepPlan | None:
        """Launch what may be in flight, then land the oldest step."""
        plan = self.launch()
        if self.launched and (plan is None or len(self.launched) >= self.capacity.max_in_flight_steps):
            self.land()
        return plan

    def run(self, max_steps: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_steps):
            if self.step() is None and not self.launched and not self.scheduler.has_work():
                if not self.scheduler.state.sequences:
                    return
                self.now += 0.01
        raise AssertionError(f"still at work after {max_steps} steps: {list(self.scheduler.state.sequences)[:5]}")

    def events_of(self, kind: EventKind) -> list[Event]:
        return [event for event in self.events if event.kind is kind]

    def started(self) -> list[str]:
        """Sequences in the order of their first chunk."""
        return [event.seq_id for event in self.events_of(EventKind.SCHEDULED)]


def with_rules(policy: Policy, **sections: Mapping[str, object]) -> Policy:
    """The policy with some fields of some sections changed."""
    return policy.model_copy(
        update={name: getattr(policy, name).model_copy(update=dict(values)) for name, values in sections.items()}
    )
