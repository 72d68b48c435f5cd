"""By priority and by memory: who yields, what it costs, how often, and that everybody comes back."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Capacity, EventKind, Reason
from scheduler_worker.core.policy import Policy, Preemption, default_policy
from scheduler_worker.core.preemption import Victim, in_order_of_return, last_in_line, return_cost, why_not
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import Sequence, SequenceHeader, SequenceState
from scheduler_worker.core.state import why_nobody_yields
from tests.core.worlds import World, a_capacity, with_rules

RESCUE_S = 0.07  # high's 100 ms objective less 30 ms: within the 50 ms in which rescues begin


def a_row(number: int, rank: int, num_preemptions: int = 0) -> Sequence:
    sequence = Sequence(SequenceHeader(f"s{number}", "low", "t", number, 0.0, 10, 100), 100)
    sequence.rank, sequence.num_preemptions = rank, num_preemptions
    return sequence


def rules_of(policy: Policy, class_id: str, **changes: Any) -> Policy:
    """The policy with one class's preemption rules changed."""
    classes = tuple(
        one.model_copy(update={"preemption": one.preemption.model_copy(update=changes)}) if one.id == class_id else one
        for one in policy.classes
    )
    return policy.model_copy(update={"classes": classes})


def pressed(world: World, name: str = "high", **more: Any) -> None:
    """A high request that would miss its first token if it had to wait for a slot."""
    world.add(name, "high", at=world.now - RESCUE_S, **{"prompt": 16, "max_tokens": 3, **more})


def parked(world: World) -> list[str]:
    return [event.seq_id for event in world.events_of(EventKind.PREEMPTED)]


def full(capacity: Capacity | None = None, policy: Policy | None = None, class_id: str = "low") -> World:
    """Two low sequences hold both slots."""
    world = World(capacity=capacity or a_capacity(num_slots=2), policy=policy or default_policy())
    for name in ("first", "second"):
        world.add(name, class_id, prompt=32 if name == "first" else 16, max_tokens=200)
    world.step()
    world.step()
    return world


# The rules by themselves


@pytest.mark.parametrize(
    ("rank", "by_rank", "generated", "preempted", "resident_s", "reason"),
    [
        (2, 0, 10, 0, 1.0, None),
        (2, 2, 10, 0, 1.0, Reason.AS_URGENT),
        (1, 2, 10, 0, 1.0, Reason.AS_URGENT),
        (2, 0, 49, 0, 1.0, None),
        (2, 0, 50, 0, 1.0, Reason.PAST_MAX_GENERATED),
        (2, 0, 10, 1, 1.0, None),
        (2, 0, 10, 2, 1.0, Reason.PAST_MAX_PREEMPTIONS),
        (2, 0, 10, 0, 0.5, None),
        (2, 0, 10, 0, 0.4, Reason.WITHIN_MIN_RESIDENCY),
    ],
)
def test_who_may_yield(
    rank: int, by_rank: int, generated: int, preempted: int, resident_s: float, reason: Reason | None
) -> None:
    rules = Preemption(max_generated_tokens=50, max_preemptions=2, min_residency_s=0.5)
    row = a_row(1, rank, preempted)
    row.resident_since = 10.0
    assert why_not(row, generated, by_rank, rules, 10.0 + resident_s) is reason


@pytest.mark.parametrize(("num_blocks", "swaps"), [(0, False), (1, True), (5, True), (6, False)])
def test_a_copy_needs_a_block_to_copy_and_room_on_the_host_for_all_of_them(num_blocks: int, swaps: bool) -> None:
    assert return_cost(num_blocks, 1.0, a_capacity(swap_block_s=1e-3), True, 5)[1] is swaps


def test_a_class_that_may_not_yield_does_not() -> None:
    assert why_not(a_row(1, 2), 0, 0, Preemption(preemptible=False), 0.0) is Reason.CLASS_MAY_NOT_YIELD


@pytest.mark.parametrize(
    ("blocks", "recompute_s", "may_swap", "left", "cost"),
    [
        (10, 0.1, True, 10, (2 * 10 * 0.001, True)),
        (10, 0.1, True, 9, (0.1, False)),
        (10, 0.1, False, 10, (0.1, False)),
        (10, 0.02, True, 10, (0.02, False)),
        (10, 0.0201, True, 10, (0.02, True)),
        (0, 0.1, True, 10, (0.1, False)),
    ],
)
def test_the_return_is_copied_or_computed_whichever_is_less(
    blocks: int, recompute_s: float, may_swap: bool, left: int, cost: tuple[float, bool]
) -> None:
    capacity = Capacity(1, 1, 16, 100, swap_block_s=0.001)
    assert return_cost(blocks, recompute_s, capacity, may_swap, left) == (pytest.approx(cost[0]), cost[1])


def test_by_priority_the_cheapest_return_yields_first() -> None:
    rows = [a_row(1, 2), a_row(2, 2)]
    assert [one.number for one in in_order_of_return(rows, lambda one: 100 - one.number)] == [2, 1]


def test_by_priority_equal_costs_take_the_least_urgent_then_the_latest() -> None:
    rows = [a_row(number, rank) for number, rank in ((1, 1), (2, 2), (3, 2))]
    assert [one.number for one in in_order_of_return(rows, lambda one: 50)] == [3, 2, 1]


def test_by_memory_the_least_urgent_class_yields_before_a_cheaper_return() -> None:
    victims = [Victim(a_row(1, 1), 0.01, False, 4), Victim(a_row(2, 2), 0.5, False, 4)]
    chosen = last_in_line(victims)
    assert chosen is not None
    assert chosen.sequence.number == 2


def test_by_memory_the_cheapest_return_yields_though_a_longer_one_would_give_more_for_its_price() -> None:
    victims = [Victim(a_row(1, 2), 0.2, False, 4), Victim(a_row(2, 2), 0.3, False, 60)]
    chosen = last_in_line(victims)
    assert chosen is not None
    assert chosen.sequence.number == 1


def test_by_memory_the_latest_arrival_among_equals_yields() -> None:
    chosen = last_in_line(Victim(a_row(number, 2), 0.4, False, 8) for number in (1, 3, 2))
    assert chosen is not None
    assert chosen.sequence.number == 3


# By priority, in the scheduler


def test_an_urgent_request_takes_the_slot_of_the_cheapest_return() -> None:
    world = full()
    pressed(world)
    world.step()
    event = world.events_of(EventKind.PREEMPTED)[0]
    assert (event.seq_id, event.reason, event.numbers["by"]) == ("second", Reason.PREEMPTED_BY_PRIORITY, "high")
    assert "high" in world.started()


def test_one_that_is_not_urgent_waits() -> None:
    world = full()
    world.add("high", "high", prompt=16, max_tokens=3)
    world.step()
    assert parked(world) == []


def test_one_whose_objective_is_already_lost_takes_nothing() -> None:
    world = full()
    world.add("high", "high", prompt=16, max_tokens=3, at=world.now - 0.2)
    world.step()
    assert parked(world) == []


def test_the_victim_comes_back_and_makes_all_its_tokens() -> None:
    world = full()
    pressed(world)
    world.run()
    assert world.finished["second"].num_generated_tokens == 200
    assert world.finished["second"].num_preemptions == 1
    assert world.finished["second"].parked_s > 0


def test_a_recomputed_victim_starts_from_nothing_and_is_charged_nothing() -> None:
    world = full()
    pressed(world)
    world.step()
    before = world.scheduler.state.ledger.service("low")
    while not world.events_of(EventKind.RESUMED):
        steps_before = world.scheduler.state.ledger.service("low")
        plan = world.step()
        assert plan is not None
    chunk = next(one for one in plan.chunks if one.seq_id == "second")
    assert (chunk.start, chunk.first) == (0, True)
    assert before <= steps_before
    num_tokens = len([one for one in plan.chunks if one.samples and one.seq_id != "high"])
    assert world.scheduler.state.ledger.service("low") - steps_before == pytest.approx(2.0 * num_tokens)


def test_a_swapped_victim_goes_on_where_it_was() -> None:
    world = full(capacity=a_capacity(num_slots=2, num_swap_blocks=8, swap_block_s=1e-9))
    pressed(world)
    world.run()
    resumed = world.events_of(EventKind.RESUMED)
    assert [event.reason for event in resumed] == [Reason.SWAPPED_IN]
    assert all(not chunk.first or chunk.start == 0 for plan in world.plans for chunk in plan.chunks)
    assert world.scheduler.state.num_checkpoint_blocks == 0


def test_without_room_on_the_host_the_victim_recomputes() -> None:
    world = full(capacity=a_capacity(num_slots=2, num_swap_blocks=1, swap_block_s=1e-9))
    pressed(world)
    world.run()
    assert world.events_of(EventKind.RESUMED)[0].reason is Reason.RECOMPUTES


def test_past_max_generated_tokens_nobody_yields_and_the_reason_is_told_once() -> None:
    world = full(policy=rules_of(default_policy(), "low", max_generated_tokens=1))
    pressed(world)
    world.scheduler.claim(["high"], world.now)
    world.step()
    world.step()
    told = world.events_of(EventKind.NOT_PREEMPTED)
    assert [event.reason for event in told] == [Reason.PAST_MAX_GENERATED]


def told_not_preempted(world: World) -> list[tuple[str, Reason]]:
    return [(event.seq_id, event.reason) for event in world.events_of(EventKind.NOT_PREEMPTED)]


def test_a_request_that_nobody_has_claimed_is_told_once_that_nobody_yields() -> None:
    world = full(policy=rules_of(default_policy(), "low", preemptible=False))
    pressed(world)
    for _ in range(3):
        world.step()
    assert told_not_preempted(world) == [("high", Reason.CLASS_MAY_NOT_YIELD)]


def test_why_nobody_yields_comes_with_the_numbers() -> None:
    world = full(policy=rules_of(default_policy(), "low", preemptible=False))
    pressed(world)
    asked_at = world.now
    world.step()
    (event,) = world.events_of(EventKind.NOT_PREEMPTED)
    latest_start_at = world.scheduler.state.sequences["high"].latest_start_at
    assert event.numbers == {"left_s": latest_start_at - asked_at, "num_rows": 2}


def test_nothing_is_told_of_a_request_that_another_worker_claimed_meanwhile() -> None:
    world = full(policy=rules_of(default_policy(), "low", preemptible=False))
    pressed(world)
    world.launch()
    world.take(world.scheduler.withdraw(["high"], world.now))
    world.land()
    assert told_not_preempted(world) == []


def test_among_equals_it_is_their_urgency_that_forbids_it() -> None:
    world = full(class_id="high")
    pressed(world)
    world.step()
    assert told_not_preempted(world) == [("high", Reason.AS_URGENT)]


def test_one_that_takes_a_slot_is_not_told_that_nobody_yielded() -> None:
    world = full()
    pressed(world)
    world.run()
    assert told_not_preempted(world) == []


def test_where_those_that_would_yield_free_too_few_blocks_the_others_are_named() -> None:
    """50 blocks: two low rows hold or are promised 29, a high one 15; the urgent one needs 39."""
    world = full(capacity=a_capacity(num_slots=4, num_blocks=50))
    world.add("holder", "high", prompt=32, max_tokens=200)
    world.step()
    pressed(world, prompt=600, max_tokens=20)
    world.scheduler.claim(["high"], world.now)
    world.step()
    assert (told_not_preempted(world), parked(world)) == ([("high", Reason.AS_URGENT)], [])


def test_rows_that_would_all_yield_lack_blocks() -> None:
    world = full()
    state = world.scheduler.state
    assert why_nobody_yields(state, state.lockstep.rows.values(), 0, world.now) == (Reason.NO_BLOCKS, 2)


def test_nobody_is_parked_more_often_than_allowed() -> None:
    policy = rules_of(default_policy(), "low", max_preemptions=1, max_generated_tokens=1000)
    world = full(policy=policy)
    for number in range(6):
        pressed(world, f"high-{number}", max_tokens=2)
        for _ in range(8):
            world.step()
    world.run()
    assert max(parked(world).count(name) for name in ("first", "second")) == 1


def test_minimum_residency_holds_after_every_return() -> None:
    policy = rules_of(default_policy(), "low", min_residency_s=1e6)
    world = full(policy=policy)
    pressed(world)
    world.step()
    assert parked(world) == []


def test_nobody_yields_when_all_victims_together_would_not_give_enough() -> None:
    world = full(capacity=a_capacity(num_slots=3, num_blocks=56))
    world.add("rock", "high", prompt=320, max_tokens=100)
    world.step()
    pressed(world, prompt=500, max_tokens=1)
    world.step()
    assert parked(world) == []


def test_as_few_yield_as_give_enough_blocks() -> None:
    policy = with_rules(default_policy(), memory={"reserve_growth": 0.0})
    world = World(policy=policy, capacity=a_capacity(num_slots=8, num_blocks=20))
    for number in range(5):
        world.add(f"low-{number}", "low", prompt=60, max_tokens=4)
    world.step()
    pressed(world, prompt=100, max_tokens=2)
    world.step()
    assert len(parked(world)) == 2
    assert "high" in world.started()


def test_with_two_steps_in_flight_the_victim_leaves_when_its_last_step_is_applied() -> None:
    world = World(capacity=a_capacity(num_slots=1, max_in_flight_steps=2))
    world.add("low", "low", prompt=16, max_tokens=40)
    world.launch()
    pressed(world)
    plan = world.launch()
    assert plan is None or plan.yielding == ("low",)
    while "high" not in world.finished:
        world.step()
    world.run()
    assert world.finished["low"].num_generated_tokens == 40
    assert world.emitted["low"] == 40


def test_a_parked_sequence_has_a_wait_bound_of_its_own() -> None:
    world = full()
    pressed(world)
    world.step()
    sequence = world.scheduler.state.sequences["second"]
    assert sequence.state is SequenceState.PARKED
    assert sequence.bound_at == pytest.approx((sequence.parked_at or 0.0) + 30.0)


def test_a_parked_sequence_near_its_bound_goes_before_a_fresh_one() -> None:
    world = full(policy=rules_of(default_policy(), "low", max_generated_tokens=1000))
    pressed(world, max_tokens=500)
    world.step()
    world.now += 25.0
    world.add("fresh", "medium", prompt=16, max_tokens=5)
    world.take(world.scheduler.cancel("first", world.now))
    plan = world.step()
    assert plan is not None
    assert [event.seq_id for event in plan.events if event.kind is EventKind.RESUMED] == ["second"]


def test_urgent_arrivals_without_end_do_not_thrash_the_low_class() -> None:
    """Every low sequence is recomputed at most twice, and all of them end."""
    world = World(capacity=a_capacity(num_slots=4, num_blocks=256), checks=False)
    for number in range(20):
        world.add(f"low-{number}", "low", prompt=64, max_tokens=30)
    for number in range(200):
        if number % 4 == 0:
            pressed(world, f"high-{number}", max_tokens=4)
        world.step()
    world.run()
    assert max(one.num_preemptions for one in world.finished.values()) <= 2
    assert len(world.finished) == 70


# By memory


def squeezed(depth: int = 1, growth: float = 0.0, swap_blocks: int = 0) -> World:
    """Four sequences whose answers outgrow a pool of 12 blocks, because nothing was reserved."""
    policy = with_rules(default_policy(), memory={"reserve_growth": growth})
    capacity = a_capacity(
        num_slots=4, num_blocks=12, max_in_flight_steps=depth, num_swap_blocks=swap_blocks, swap_block_s=1e-9
    )
    world = World(policy=policy, capacity=capacity)
    for number in range(4):
        world.add(f"r{number}", "low", prompt=16, max_tokens=100)
    return world


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("swap_blocks", [0, 40])
def test_a_shortage_of_blocks_parks_the_last_in_line_and_everybody_finishes(depth: int, swap_blocks: int) -> None:
    world = squeezed(depth, swap_blocks=swap_blocks)
    world.run()
    reasons = {event.reason for event in world.events_of(EventKind.PREEMPTED)}
    assert reasons == {Reason.PREEMPTED_BY_MEMORY}
    assert "r0" not in parked(world)
    assert {one.num_generated_tokens for one in world.finished.values()} == {100}
    assert world.emitted == {f"r{number}": 100 for number in range(4)}


def test_parking_by_memory_does_not_count_as_parking_by_priority() -> None:
    world = squeezed()
    world.run()
    assert {one.num_preemptions for one in world.finished.values()} == {0}


def test_reserved_growth_avoids_the_shortage() -> None:
    """256 tokens are expected at first, so that one or two run at a time, and nobody is parked."""
    world = squeezed(growth=1.0)
    world.run()
    assert parked(world) == []


def test_a_head_without_blocks_is_passed_at_most_so_often() -> None:
    policy = with_rules(default_policy(), memory={"reserve_growth": 0.0, "max_bypasses": 3})
    world = World(policy=policy, capacity=a_capacity(num_slots=8, num_blocks=16))
    world.add("running", "low", prompt=100, max_tokens=100)
    world.step()
    world.add("head", "low", prompt=180, max_tokens=4)
    for number in range(10):
        world.add(f"small-{number}", "low", prompt=8, max_tokens=60)
    for _ in range(20):
        world.step()
    assert len([name for name in world.started() if name.startswith("small")]) == 3
    waits = world.events_of(EventKind.OUT_OF_BLOCKS)
    assert [event.reason for event in waits] == [Reason.NO_BLOCKS, Reason.HEAD_HOLDS_BLOCKS]
    world.run()
    assert len(world.finished) == 12


def test_the_cost_model_decides_between_copying_and_computing() -> None:
    world = full(capacity=a_capacity(num_slots=2, num_swap_blocks=8, swap_block_s=0.001))
    row = world.scheduler.state.sequences["first"]
    assert not world.scheduler.state.as_victim(row).swaps
    slow = {"base_s": 0.002, "prefill_token_s": 0.01, "num_observed": 1000.0}
    world.scheduler.state.cost_model = CostModel(slow)
    assert world.scheduler.state.as_victim(row).swaps


def test_the_scheduler_has_a_prior_when_no_cost_model_is_given() -> None:
    assert Scheduler(default_policy(), a_capacity()).cost_model.num_observed == 0
