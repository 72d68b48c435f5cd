"""A new policy under running sequences: nobody is lost, and the new rules hold from the next step on."""

from __future__ import annotations

import pytest

from scheduler_worker.core.plan import EventKind
from scheduler_worker.core.policy import ClassPolicy, Policy, Slo, default_policy
from tests.core.worlds import World, a_capacity, with_rules


def without_low() -> Policy:
    three = default_policy()
    return three.model_copy(update={"classes": three.classes[:2], "retired": {"low": "medium"}})


def loaded() -> World:
    world = World(capacity=a_capacity(num_slots=2))
    for number in range(6):
        world.add(f"low-{number}", "low", prompt=16, max_tokens=6)
    world.step()
    return world


def test_a_retired_class_is_served_by_its_fallback() -> None:
    world = loaded()
    world.take(world.scheduler.set_policy(without_low(), 2, world.now))
    assert {one.class_id for one in world.scheduler.state.sequences.values()} == {"medium"}
    world.run()
    assert len(world.finished) == 6


def test_the_event_says_which_version_and_how_many_moved() -> None:
    world = loaded()
    applied = world.take(world.scheduler.set_policy(without_low(), 2, world.now))
    assert dict(applied.events[0].numbers) == {"version": 2, "before": 0, "num_moved": 6}


def test_a_class_that_comes_back_takes_its_sequences_back() -> None:
    world = loaded()
    world.take(world.scheduler.set_policy(without_low(), 2, world.now))
    world.take(world.scheduler.set_policy(default_policy(), 3, world.now))
    assert {one.class_id for one in world.scheduler.state.sequences.values()} == {"low"}
    world.run()


def test_an_id_that_never_was_a_class_is_served_by_the_least_urgent() -> None:
    world = World()
    world.add("a", "nobody_knows")
    assert world.scheduler.state.sequences["a"].class_id == "low"


def test_a_new_class_can_be_used_at_once() -> None:
    world = loaded()
    batch = ClassPolicy(id="batch", rank=3, weight=5, slo=Slo(ttft_s=5.0, tpot_s=1.0))
    policy = default_policy().model_copy(update={"classes": (*default_policy().classes, batch)})
    world.take(world.scheduler.set_policy(policy, 2, world.now))
    world.add("new", "batch")
    world.run()
    assert world.finished["new"].class_id == "batch"


def test_new_objectives_move_the_deadlines_of_those_that_wait() -> None:
    world = loaded()
    slower = default_policy().classes[2].model_copy(update={"slo": Slo(ttft_s=9.0, tpot_s=0.1)})
    policy = default_policy().model_copy(update={"classes": (*default_policy().classes[:2], slower)})
    world.take(world.scheduler.set_policy(policy, 2, world.now))
    assert world.scheduler.state.sequences["low-5"].deadline_at == pytest.approx(9.0)


def test_a_late_one_is_fresh_again_when_its_objective_is_relaxed() -> None:
    world = World(capacity=a_capacity(num_slots=1))
    world.add("old", "low", at=0.0)
    world.now = 2.0
    world.add("young", "low")
    world.scheduler.claim_candidates(world.now)
    relaxed = default_policy().classes[2].model_copy(update={"slo": Slo(ttft_s=9.0, tpot_s=0.1)})
    policy = default_policy().model_copy(update={"classes": (*default_policy().classes[:2], relaxed)})
    world.take(world.scheduler.set_policy(policy, 2, world.now))
    world.run()
    assert world.started() == ["old", "young"]


def test_a_lower_limit_parks_nobody_and_holds_for_new_starts() -> None:
    world = World(capacity=a_capacity(num_slots=8))
    for number in range(12):
        world.add(f"r{number}", "low", prompt=16, max_tokens=5 if number < 8 else 3)
    world.step()
    policy = with_rules(default_policy(), batch_limit={"min_slots": 1, "max_slots": 2})
    world.take(world.scheduler.set_policy(policy, 2, world.now))
    plan = world.step()
    assert plan is not None
    assert len(plan.chunks) == 8
    while len(world.finished) < 8:
        plan = world.step()
    plan = world.step()
    assert plan is not None
    assert len(plan.chunks) == 2
    assert not world.events_of(EventKind.PREEMPTED)


def test_a_budget_below_the_number_of_rows_is_kept_and_everybody_still_ends() -> None:
    world = World(capacity=a_capacity(num_slots=8))
    for number in range(8):
        world.add(f"r{number}", "low", prompt=16, max_tokens=5)
    world.step()
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 3, "max_chunk_tokens": 3})
    world.take(world.scheduler.set_policy(policy, 2, world.now))
    world.run()
    assert max(sum(chunk.num_tokens for chunk in plan.chunks) for plan in world.plans[1:]) <= 3
    assert {one.num_generated_tokens for one in world.finished.values()} == {5}


def test_the_plan_and_the_snapshot_name_the_version_that_ruled() -> None:
    world = loaded()
    world.take(world.scheduler.set_policy(without_low(), 7, world.now))
    plan = world.step()
    assert plan is not None
    assert (plan.policy_version, world.scheduler.snapshot(world.now).policy_version) == (7, 7)
