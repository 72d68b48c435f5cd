"""A missed bound is told when it passes, once, with the cause that the numbers show."""

from __future__ import annotations

import pytest

from scheduler_worker.core.plan import Event, EventKind, Reason
from scheduler_worker.core.policy import Policy, default_policy
from tests.core.worlds import World, a_capacity, with_rules

BOUND_S = 0.5


def with_bounds(max_wait_s: float = BOUND_S, max_parked_s: float = 30.0) -> Policy:
    """The default classes with these bounds; high is never asked to yield, and nobody is starving."""
    classes = tuple(
        one.model_copy(update={"max_wait_s": max_wait_s, "max_parked_s": max_parked_s})
        for one in default_policy().classes
    )
    policy = default_policy().model_copy(update={"classes": classes})
    return with_rules(policy, starvation={"enabled": False})


def busy(policy: Policy | None = None) -> World:
    """The only slot is held by a high sequence for some 1.2 s; whoever comes now waits."""
    world = World(policy=policy or with_bounds(), capacity=a_capacity(num_slots=1))
    world.add("holder", "high", prompt=16, max_tokens=500)
    world.step()
    return world


def step_until(world: World, at: float) -> None:
    while world.now < at:
        world.step()


def missed(world: World) -> list[Event]:
    return world.events_of(EventKind.BOUND_MISSED)


def test_a_miss_is_told_in_the_step_in_which_the_bound_passes() -> None:
    world = busy()
    arrived_at = world.now
    world.add("late", "low")
    step_until(world, arrived_at + BOUND_S + 0.05)
    assert [(one.seq_id, one.at - arrived_at) for one in missed(world)] == [("late", pytest.approx(BOUND_S, abs=0.01))]
    assert "late" not in world.started()


def test_nothing_is_told_before_the_bound_passes() -> None:
    world = busy()
    world.add("waits", "low")
    step_until(world, world.now + BOUND_S - 0.01)
    assert missed(world) == []


def test_a_miss_is_told_once_though_the_start_comes_later() -> None:
    world = busy()
    world.add("late", "low")
    world.run()
    assert [one.seq_id for one in missed(world)] == ["late"]


def test_one_that_starts_in_time_is_not_told_while_it_runs_past_its_bound() -> None:
    world = busy()
    step_until(world, BOUND_S + 0.3)
    assert missed(world) == []


def test_one_that_is_cancelled_while_it_waits_has_missed_nothing() -> None:
    world = busy()
    world.add("gone", "low")
    world.take(world.scheduler.cancel("gone", world.now))
    step_until(world, world.now + BOUND_S + 0.1)
    assert missed(world) == []


def test_the_wait_after_a_preemption_has_its_own_bound() -> None:
    world = World(policy=with_bounds(30.0, max_parked_s=0.2), capacity=a_capacity(num_slots=1))
    world.add("parked", "low", prompt=16, max_tokens=100)
    world.step()
    world.add("taker", "high", prompt=16, max_tokens=500, at=world.now - 0.07)
    world.run()
    assert [(one.seq_id, one.numbers["parked_s"]) for one in missed(world)] == [
        ("parked", pytest.approx(0.2, abs=0.02))
    ]


def test_a_policy_with_a_shorter_bound_counts_from_its_arrival() -> None:
    world = busy(with_bounds(30.0))
    world.add("late", "low")
    step_until(world, world.now + 0.3)
    world.take(world.scheduler.set_policy(with_bounds(0.2 + 0.3), 2, world.now))
    step_until(world, world.now + 0.3)
    assert [one.seq_id for one in missed(world)] == ["late"]


def test_a_policy_with_a_longer_bound_gives_the_waiting_more_time() -> None:
    world = busy()
    world.add("waits", "low")
    world.take(world.scheduler.set_policy(with_bounds(30.0), 2, world.now))
    step_until(world, world.now + BOUND_S + 0.1)
    assert missed(world) == []


def test_more_urgent_work_than_the_margin_foresaw_is_named_as_the_cause() -> None:
    """The holder is 1,016 tokens' worth; then high brings thirty times that."""
    world = busy()
    world.add("late", "low")
    for number in range(30):
        world.add(f"jump-{number}", "high", prompt=16, max_tokens=500)
    step_until(world, world.now + BOUND_S + 0.05)
    (event,) = [one for one in missed(world) if one.seq_id == "late"]
    assert event.reason is Reason.MORE_URGENT_WORK
    assert float(event.numbers["excess_tokens"]) > float(event.numbers["margin_tokens"])


def test_urgent_work_that_was_there_before_is_not() -> None:
    world = World(policy=with_bounds(), capacity=a_capacity(num_slots=1))
    for number in range(5):
        world.add(f"high-{number}", "high", prompt=16, max_tokens=500)
    world.step()
    world.add("late", "low")
    step_until(world, world.now + BOUND_S + 0.05)
    (event,) = [one for one in missed(world) if one.seq_id == "late"]
    assert event.reason is Reason.ESTIMATE_WAS_OFF


def test_work_of_less_urgent_classes_is_no_cause() -> None:
    world = busy()
    world.add("late", "medium")
    for number in range(30):
        world.add(f"low-{number}", "low", prompt=16, max_tokens=500)
    step_until(world, world.now + BOUND_S + 0.05)
    (event,) = [one for one in missed(world) if one.seq_id == "late"]
    assert event.reason is Reason.ESTIMATE_WAS_OFF


def test_a_step_looks_at_the_next_bound_only() -> None:
    """Ten thousand come and go before their bounds pass: what is remembered of them is dropped on the way."""
    world = World(policy=with_bounds(30.0), capacity=a_capacity(num_slots=1), checks=False)
    for number in range(10_000):
        world.add(f"r{number}", "low")
        world.take(world.scheduler.cancel(f"r{number}", world.now))
    assert len(world.scheduler.state.bounds) <= 128
