"""Any order of verbs keeps every invariant, loses nobody, and ends everybody exactly once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from scheduler_worker.core.invariants import check_all
from scheduler_worker.core.plan import Capacity, FinishReason
from scheduler_worker.core.policy import Policy, default_policy
from tests.core.worlds import World, a_capacity, with_rules

CLASSES = ("high", "medium", "low", "never_one")


def _policies() -> list[Policy]:
    three = default_policy()
    two = three.model_copy(update={"classes": three.classes[:2], "retired": {"low": "medium"}})
    only_low = three.model_copy(update={"classes": three.classes[2:], "retired": {"high": "low", "medium": "low"}})
    tight = with_rules(
        three,
        step={"max_num_batched_tokens": 16, "max_chunk_tokens": 8},
        memory={"reserve_growth": 0.0, "max_bypasses": 0, "swap": False},
        batch_limit={"min_slots": 1, "max_slots": 2},
        fairness={"tenants": "equal", "max_lead_tokens": 0.0},
    )
    tiny_budget = with_rules(three, step={"max_num_batched_tokens": 2, "max_chunk_tokens": 2})
    loose = with_rules(three, memory={"reserve_growth": 0.0, "max_bypasses": 2})
    return [three, two, only_low, tight, tiny_budget, loose]


POLICIES = _policies()


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are taken away, fail and are requeued; policies change; the device runs out of memory."""

    names = Bundle("names")

    @initialize(
        depth=st.integers(1, 2),
        num_blocks=st.sampled_from((22, 40, 64)),
        num_slots=st.sampled_from((1, 3, 8)),
        num_swap_blocks=st.sampled_from((0, 24)),
    )
    def start(self, depth: int, num_blocks: int, num_slots: int, num_swap_blocks: int) -> None:
        capacity: Capacity = a_capacity(
            max_in_flight_steps=depth,
            num_blocks=num_blocks,
            num_slots=num_slots,
            num_swap_blocks=num_swap_blocks,
            max_model_len=320,
        )
        self.world = World(capacity=capacity)
        self.version = 0

    @rule(
        target=names,
        class_id=st.sampled_from(CLASSES),
        tenant=st.sampled_from("abc"),
        prompt=st.sampled_from((0, 1, 15, 16, 17, 100, 200, 319, 400)),
        max_tokens=st.sampled_from((1, 2, 30, 60, 500)),
        length=st.integers(1, 80),
        num_hashes=st.sampled_from((0, 1, 6)),
    )
    def add(self, num_hashes: int, **request: Any) -> str:
        seq_id = f"r{self.world.arrivals + 1}"
        self.world.add(seq_id, block_hashes=tuple(range(num_hashes)), **request)
        return seq_id

    @rule(seq_id=names)
    def cancel(self, seq_id: str) -> None:
        self.world.take(self.world.scheduler.cancel(seq_id, self.world.now))

    @rule(seq_id=names)
    def withdraw(self, seq_id: str) -> None:
        self.world.take(self.world.scheduler.withdraw([seq_id], self.world.now))

    @rule(seq_id=names)
    def requeue(self, seq_id: str) -> None:
        """A lease ran out: the header comes back with what was published, under the next attempt."""
        known = self.world.scheduler.state.sequences.get(seq_id)
        if known is not None:
            header = replace(
                known.header,
                attempt=known.header.attempt + 1,
                num_generated_tokens=self.world.emitted.get(seq_id, 0),
            )
            self.world.take(self.world.scheduler.add(header, self.world.now))

    @rule()
    def claim(self) -> None:
        self.world.claim()

    @rule()
    def launch(self) -> None:
        self.world.launch()

    @rule()
    def land(self) -> None:
        if self.world.launched:
            self.world.land()

    @rule()
    def step(self) -> None:
        self.world.step()

    @rule(index=st.integers(0, 7))
    def fail_a_row(self, index: int) -> None:
        if self.world.launched:
            chunks = self.world.launched[0].chunks
            self.world.land(failed=[chunks[index % len(chunks)].seq_id])

    @rule()
    def run_out_of_memory(self) -> None:
        if self.world.launched:
            self.world.launched.clear()
            self.world.take(self.world.scheduler.fail_step(self.world.now))

    @rule(policy=st.sampled_from(POLICIES))
    def set_policy(self, policy: Policy) -> None:
        self.version += 1
        self.world.take(self.world.scheduler.set_policy(policy, self.version, self.world.now))

    @rule(seconds=st.sampled_from((0.001, 0.1, 1.0, 30.0)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "world"):
            check_all(self.world.scheduler)

    @invariant()
    def planning_changes_nothing(self) -> None:
        if hasattr(self, "world"):
            plans = [self.world.scheduler.plan_step(self.world.now) for _ in range(2)]
            assert plans[0] == plans[1]
            self.world.scheduler.snapshot(self.world.now)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.run()
        state = world.scheduler.state
        assert state.pool.num_used == 0
        assert state.free_slots == list(range(state.capacity.num_slots))
        assert len(world.finished) == world.arrivals
        for seq_id, ended in world.finished.items():
            if ended.reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert ended.num_generated_tokens == world.emitted.get(seq_id, 0)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerMachine = pytest.mark.timeout(600)(TestSchedulerMachine)
