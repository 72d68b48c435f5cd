"""Who is next: the starvation tier, rescues, turns; and waits that stay within their bounds."""

from __future__ import annotations

import pytest

from scheduler_worker.core.plan import EventKind, Reason
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.sequence import Sequence
from scheduler_worker.core.turns import Turns, is_urgent
from tests.core.worlds import World, a_capacity, with_rules


def one_slot(policy: Policy | None = None) -> World:
    """A worker that serves one at a time; answers take a while."""
    return World(policy=policy or default_policy(), capacity=a_capacity(num_slots=1))


def reasons(world: World) -> dict[str, Reason]:
    return {event.seq_id: event.reason for event in world.events_of(EventKind.SCHEDULED)}


def without_preemption(policy: Policy) -> Policy:
    """Nobody yields, so that only the order of starts is seen."""
    classes = tuple(
        one.model_copy(update={"preemption": one.preemption.model_copy(update={"preemptible": False})})
        for one in policy.classes
    )
    return policy.model_copy(update={"classes": classes})


def test_in_a_class_the_earliest_arrival_is_first() -> None:
    world = one_slot()
    world.add("later", at=0.02)
    world.add("earlier", at=0.01)
    world.now = 0.03
    world.run()
    assert world.started() == ["earlier", "later"]


def test_equal_arrivals_go_by_arrival_number() -> None:
    world = one_slot()
    for name in ("b", "a", "c"):
        world.add(name)
    world.run()
    assert world.started() == ["b", "a", "c"]


def test_those_too_late_go_behind_those_that_can_still_meet_their_objective() -> None:
    world = one_slot()
    world.add("late", "low", at=0.0)
    world.now = 1.0
    world.add("fresh", "low")
    world.run()
    assert world.started() == ["fresh", "late"]


def test_a_starving_one_goes_first_however_late() -> None:
    world = one_slot()
    world.add("starving", "low", at=0.0)
    world.now = 25.0
    world.add("fresh", "low")
    world.run()
    assert world.started() == ["starving", "fresh"]
    assert reasons(world)["starving"] is Reason.STARVING


@pytest.mark.parametrize(("waited_s", "reason"), [(20.0, Reason.RESCUE), (25.0, Reason.TURN)])
def test_nobody_is_rescued_while_one_of_the_same_class_starves(waited_s: float, reason: Reason) -> None:
    """Two of low have waited so long, and one of high waits, so that low's second has no credit for the tier."""
    world = one_slot()
    for name in ("first", "second"):
        world.add(name, "low", at=0.0)
    world.now = waited_s
    world.add("fresh", "low")
    world.add("other", "high")
    world.now += 0.48
    state = world.scheduler.state
    state.waiting.advance(world.now)
    found = {}
    with Turns(state.waiting, state.ledger, state.policy, world.now) as turns:
        for sequence, why in turns:
            found[sequence.seq_id] = why
            turns.charge(sequence, 100.0)
    assert found["fresh"] is reason


def test_what_is_granted_in_a_pass_counts_to_the_last_bit_between_tenants() -> None:
    """A tenant without grants is not charged anything either."""
    world = one_slot()
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        world.add(name, tenant=tenant)
    state, order = world.scheduler.state, []
    with Turns(state.waiting, state.ledger, state.policy, world.now) as turns:
        for sequence, _ in turns.in_turn():
            order.append(sequence.seq_id)
            turns.charge(sequence, 0.25)
    assert order == ["a1", "b1", "a2"]


def test_a_tenant_that_was_granted_something_ahead_of_the_turn_is_behind_in_it() -> None:
    world = one_slot()
    for name, tenant in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        world.add(name, tenant=tenant)
    state = world.scheduler.state
    with Turns(state.waiting, state.ledger, state.policy, world.now) as turns:
        turns.charge(state.sequences["a2"], 10.0)
        assert next(turns.in_turn())[0].seq_id == "b1"


def test_what_is_granted_in_a_pass_counts_by_the_tenants_own_weights() -> None:
    """A fourth each time for a, the whole for b."""
    world = one_slot()
    for number in range(1, 6):
        world.add(f"a{number}", tenant="a", tenant_weight=4.0)
        world.add(f"b{number}", tenant="b", tenant_weight=1.0)
    state, order = world.scheduler.state, []
    with Turns(state.waiting, state.ledger, state.policy, world.now) as turns:
        for sequence, _ in turns.in_turn():
            order.append(sequence.seq_id)
            turns.charge(sequence, 1.0)
    assert order[:5] == ["a1", "b1", "a2", "a3", "a4"]


@pytest.mark.parametrize(("credit", "num_started"), [(0.0, 1), (9.0, 1), (10.0, 2), (25.0, 3), (1_000.0, 5)])
def test_in_one_pass_the_tier_grants_what_its_credit_covers_and_one_more(credit: float, num_started: int) -> None:
    """Five of low starve, each costs 10, and high waits as well."""
    world = one_slot(without_preemption(default_policy()))
    for number in range(5):
        world.add(f"low-{number}", "low")
    world.now = 25.0
    world.add("high", "high")
    state, started = world.scheduler.state, []
    state.ledger.classes["low"].tier_credit = credit
    with Turns(state.waiting, state.ledger, state.policy, world.now) as turns:
        for sequence, reason in turns.pressing():
            if reason is Reason.STARVING:
                started.append(sequence.seq_id)
                turns.charge(sequence, 10.0)
    assert len(started) == num_started


def test_the_tier_begins_a_guard_before_the_bound() -> None:
    """max_wait 30 s and guard 0.2: from 24 s on."""
    started = []
    for waited in (23.9, 24.1):
        world = one_slot()
        world.add("old", "low", at=0.0)
        world.now = waited
        world.add("fresh", "low")
        world.step()
        started.append(world.started()[0])
    assert started == ["fresh", "old"]


def test_without_the_tier_a_late_one_stays_behind() -> None:
    world = one_slot(with_rules(default_policy(), starvation={"enabled": False}))
    world.add("old", "low", at=0.0)
    world.now = 29.0
    world.add("fresh", "low")
    world.step()
    assert world.started() == ["fresh"]


def test_the_tier_spends_no_more_than_its_classes_share() -> None:
    """Low starves with 300 old requests while high and medium are backlogged: it gets about its tenth, not all."""
    policy = without_preemption(default_policy())
    world = World(policy=policy, capacity=a_capacity(num_slots=4), checks=False)
    for number in range(600):
        world.add(f"low-{number}", "low", prompt=100, max_tokens=5, at=0.0)
    world.now = 25.0
    for number in range(600):
        world.add(f"high-{number}", "high", prompt=100, max_tokens=5)
        world.add(f"medium-{number}", "medium", prompt=100, max_tokens=5)
    for _ in range(600):
        world.step()
    names = [name.split("-")[0] for name in world.started()]
    assert names.count("low") / len(names) == pytest.approx(0.1, abs=0.03)


def test_one_about_to_miss_its_first_token_goes_ahead_of_the_turn() -> None:
    policy = without_preemption(default_policy())
    world = one_slot(policy)
    world.add("running", "medium", prompt=16, max_tokens=10)
    world.step()
    world.add("turn", "low", prompt=16, max_tokens=2, at=world.now)
    world.add("pressed", "high", prompt=16, max_tokens=2, at=world.now - 0.06)
    world.run()
    assert world.started()[1] == "pressed"
    assert reasons(world)["pressed"] is Reason.RESCUE


@pytest.mark.parametrize(("left_s", "urgent"), [(-0.25, False), (0.0, True), (0.25, True), (0.5, True), (0.75, False)])
def test_urgent_is_who_can_still_meet_its_objective_and_soon_not_any_more(left_s: float, urgent: bool) -> None:
    """Within half a second of its latest start, both ends included."""
    world = World()
    world.add("one", "high")
    sequence = world.scheduler.state.sequences["one"]
    sequence.latest_start_at = 8.0 + left_s
    assert is_urgent(sequence, 8.0, 0.5) is urgent


@pytest.mark.parametrize(("lead_cost", "first"), [(6.9, "pressed"), (7.1, "behind")])
def test_a_rescue_stops_where_its_class_leads_too_far(lead_cost: float, first: str) -> None:
    """High's share is 0.7, so a lead of 10 weighted tokens is a service of 7."""
    world = one_slot(without_preemption(with_rules(default_policy(), fairness={"max_lead_tokens": 10.0})))
    world.add("behind", "low", prompt=16, max_tokens=2)
    world.add("pressed", "high", prompt=16, max_tokens=2, at=-0.06)
    ledger = world.scheduler.state.ledger
    ledger.charge(world.scheduler.state.sequences["pressed"], lead_cost)
    world.step()
    assert world.started() == [first]


def test_no_turn_is_lost_while_a_class_is_alone() -> None:
    world = one_slot()
    world.add("a", "low")
    world.run()
    assert reasons(world) == {"a": Reason.ONLY_CLASS_WAITING}


def test_a_class_is_not_alone_while_another_waits_that_nobody_has_claimed() -> None:
    """One slot: only the first is claimed, the others are still headers in the queue."""
    world = one_slot(without_preemption(default_policy()))
    for class_id in ("high", "low"):
        world.add(class_id, class_id)
    world.run()
    assert reasons(world) == {"high": Reason.TURN, "low": Reason.ONLY_CLASS_WAITING}


def test_turns_alternate_by_weight_when_many_slots_are_granted_at_once() -> None:
    """Equal requests, 70/20/10, ten slots: seven, two and one, in one step."""
    policy = without_preemption(with_rules(default_policy(), step={"rescue_within_s": 0.0}))
    world = World(policy=policy, capacity=a_capacity(num_slots=10, num_blocks=640))
    for number in range(20):
        for class_id in ("high", "medium", "low"):
            world.add(f"{class_id}-{number}", class_id, prompt=100, max_tokens=50)
    world.step()
    names = [name.split("-")[0] for name in world.started()]
    assert [names.count(one) for one in ("high", "medium", "low")] == [7, 2, 1]


@pytest.mark.parametrize("mix", ["burst of one class", "one tenant floods", "long among short"])
def test_no_wait_exceeds_its_bound_at_a_load_that_the_worker_can_carry(mix: str) -> None:
    policy = with_rules(default_policy())
    world = World(policy=policy, capacity=a_capacity(num_slots=8, num_blocks=1024, max_model_len=8192), checks=False)
    for number in range(300):
        if mix == "burst of one class":
            world.add(f"r{number}", "low" if number % 10 else "high", prompt=64, max_tokens=20)
        elif mix == "one tenant floods":
            world.add(f"r{number}", "medium", prompt=64, max_tokens=20, tenant="flood" if number % 20 else "calm")
        else:
            world.add(f"r{number}", "medium", prompt=6000 if number % 20 == 0 else 16, max_tokens=20)
    world.run()
    assert max(one.wait_s or 0.0 for one in world.finished.values()) <= 30.0
    assert not world.events_of(EventKind.BOUND_MISSED)


def test_a_start_beyond_the_bound_says_so_with_its_cause() -> None:
    world = one_slot()
    world.add("a", "low", at=0.0)
    world.now = 31.0
    world.run()
    missed = world.events_of(EventKind.BOUND_MISSED)
    assert [event.reason for event in missed] == [Reason.ESTIMATE_WAS_OFF]
    assert missed[0].numbers["late_s"] == pytest.approx(1.0)


def test_a_worker_that_slowed_down_is_named_as_the_cause() -> None:
    world = one_slot()
    world.add("a", "low", prompt=16, max_tokens=200, at=0.0)
    world.claim()
    while (plan := world.launch()) is not None:
        world.land(duration_s=plan.predicted_s * 1.5)
        if len(world.plans) > 100:
            break
    world.add("b", "low", at=world.now - 40.0)
    world.run()
    assert world.events_of(EventKind.BOUND_MISSED)[0].reason is Reason.WORKER_SLOWED


# Claims


def test_only_as_many_are_claimed_as_could_start() -> None:
    world = World(capacity=a_capacity(num_slots=3))
    for number in range(10):
        world.add(f"r{number}", "low", prompt=16, max_tokens=50)
    assert len(world.claim()) == 3


def test_nothing_is_claimed_while_the_batch_is_full() -> None:
    world = World(capacity=a_capacity(num_slots=3))
    for number in range(10):
        world.add(f"r{number}", "low", prompt=16, max_tokens=50)
    world.step()
    assert world.claim() == ()


def test_rows_about_to_end_are_counted_as_room() -> None:
    world = World(capacity=a_capacity(num_slots=1))
    world.add("a", "low", prompt=16, max_tokens=3)
    world.add("b", "low", prompt=16, max_tokens=3)
    world.step()
    assert world.claim() == ("b",)


def test_claims_stop_at_the_tokens_of_two_steps() -> None:
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 64, "max_chunk_tokens": 64})
    world = World(policy=policy)
    for number in range(8):
        world.add(f"r{number}", "low", prompt=64, max_tokens=5)
    assert len(world.claim()) == 2


def test_an_urgent_one_is_claimed_for_the_slot_of_one_that_may_yield() -> None:
    world = World(capacity=a_capacity(num_slots=1))
    world.add("low", "low", prompt=16, max_tokens=50)
    world.step()
    world.add("high", "high", prompt=16, max_tokens=5, at=world.now - 0.07)
    assert world.claim() == ("high",)


def test_whoever_is_next_is_claimed_though_others_wait_for_blocks() -> None:
    """Six requests of a greedy tenant lack blocks; one of a modest tenant comes later and is next all the same."""
    world = World(capacity=a_capacity(num_slots=16, num_blocks=20))
    world.add("running", "low", prompt=100, max_tokens=200, tenant="greedy")
    world.step()
    for number in range(6):
        world.add(f"greedy-{number}", "low", prompt=100, max_tokens=200, tenant="greedy")
    world.step()
    world.add("modest", "low", prompt=100, max_tokens=200, tenant="modest")
    ledger = world.scheduler.state.ledger
    ledger.charge(world.scheduler.state.sequences["running"], 500.0)
    assert "modest" in world.claim()


def test_thousands_who_starve_without_credit_cost_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier may take of low what one request costs; nobody after that one is asked whether it may go ahead."""
    asked: list[str] = []
    may = Turns._may

    def counted(turns: Turns, sequence: Sequence, reason: Reason) -> bool:
        asked.append(sequence.seq_id)
        return may(turns, sequence, reason)

    monkeypatch.setattr(Turns, "_may", counted)
    world = World(capacity=a_capacity(num_slots=4), checks=False)
    for number in range(2_000):
        world.add(f"low-{number}", "low")
    world.add("other", "medium")
    world.now = 26.0
    world.scheduler.claim_candidates(world.now)
    assert len([one for one in asked if one.startswith("low")]) == 2
