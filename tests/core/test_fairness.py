"""Service follows the weights; idleness earns nothing; ties end at the arrival."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_worker.core.fairness import MAX_IDLE_TENANTS, Account, LeastFirst, Ledger
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.sequence import Sequence, SequenceHeader
from tests.core.worlds import World, a_capacity, with_rules

OUTPUT_COST, PROMPT_COST, CACHED_COST = 2.0, 1.0, 0.1
NO_TIER = {"starvation": {"enabled": False}, "step": {"rescue_within_s": 0.0}}


def a_sequence(number: int, class_id: str, tenant: str = "t", weight: float = 1.0) -> Sequence:
    sequence = Sequence(SequenceHeader(f"s{number}", class_id, tenant, number, 0.0, 10, 10, tenant_weight=weight), 10)
    sequence.class_id = class_id
    return sequence


def entered(ledger: Ledger, number: int, class_id: str, tenant: str = "t", weight: float = 1.0) -> Sequence:
    sequence = a_sequence(number, class_id, tenant, weight)
    ledger.enter(sequence)
    return sequence


def counter(ledger: Ledger, class_id: str) -> float:
    return ledger.counter(ledger.classes[class_id])


def test_a_charge_counts_over_the_class_share() -> None:
    ledger = Ledger(default_policy())
    ledger.charge(entered(ledger, 1, "medium"), 100.0)
    assert counter(ledger, "medium") == pytest.approx(100.0 / 0.2)


def test_a_prompt_is_charged_with_cached_tokens_at_their_own_price() -> None:
    ledger = Ledger(default_policy())
    assert ledger.prompt_cost(100, 40) == pytest.approx(60 * PROMPT_COST + 40 * CACHED_COST)


def test_decoding_rows_are_charged_an_output_token_a_step() -> None:
    ledger = Ledger(default_policy())
    for number in (1, 2, 3):
        ledger.join(entered(ledger, number, "low"), 1)
    ledger.step += 7
    assert ledger.service("low") == pytest.approx(3 * 7 * OUTPUT_COST)


def test_an_account_opens_at_nothing() -> None:
    account = Account("a", 7, 1.0)
    assert (account.counter(5), account.service(5), account.num_active, account.num_queued) == (0.0, 0.0, 0, 0)


def test_the_order_follows_what_rows_run_up_from_the_step_in_which_they_joined() -> None:
    ledger = Ledger(default_policy())
    sequence = entered(ledger, 1, "low")
    ledger.step = 5
    ledger.join(sequence, 1)
    ledger.step = 12
    assert ledger.order(ledger.classes["low"]) == (pytest.approx(7 * OUTPUT_COST / 0.1), 2)


def test_a_row_that_left_is_charged_no_more() -> None:
    ledger = Ledger(default_policy())
    sequence = entered(ledger, 1, "low")
    ledger.join(sequence, 1)
    ledger.step = 4
    ledger.join(sequence, -1)
    ledger.step = 50
    assert ledger.service("low") == pytest.approx(4 * OUTPUT_COST)


def test_a_class_that_returns_is_lifted_to_the_least_active_counter() -> None:
    ledger = Ledger(default_policy())
    ledger.charge(entered(ledger, 1, "medium"), 100.0)
    ledger.charge(entered(ledger, 2, "low"), 100.0)
    entered(ledger, 3, "high")
    assert counter(ledger, "high") == pytest.approx(min(100 / 0.2, 100 / 0.1))


def test_nobody_active_means_lifting_to_the_last_active_counter() -> None:
    ledger = Ledger(default_policy())
    sequence = entered(ledger, 1, "medium")
    ledger.charge(sequence, 100.0)
    ledger.leave(sequence)
    entered(ledger, 2, "high")
    assert counter(ledger, "high") == pytest.approx(100 / 0.2)


def test_a_running_class_without_a_queue_lifts_a_returning_one() -> None:
    ledger = Ledger(default_policy())
    ledger.join(entered(ledger, 1, "low"), 1)
    ledger.step = 10
    entered(ledger, 2, "high")
    assert counter(ledger, "high") == pytest.approx(10 * OUTPUT_COST / 0.1)


def test_a_tenant_that_returns_is_lifted_within_its_class() -> None:
    ledger = Ledger(default_policy())
    ledger.charge(entered(ledger, 1, "low", "busy"), 60.0)
    late = entered(ledger, 2, "low", "late")
    assert ledger.counter(ledger.accounts_of(late)[1]) == pytest.approx(60.0)


def test_a_newcomer_is_lifted_past_tenants_that_are_idle() -> None:
    ledger = Ledger(default_policy())
    busy, gone = entered(ledger, 1, "low", "busy"), entered(ledger, 2, "low", "gone")
    ledger.charge(busy, 50.0)
    ledger.charge(gone, 10.0)
    ledger.leave(gone)
    entered(ledger, 3, "low", "newcomer")
    assert ledger.classes["low"].tenants["newcomer"].counter(0) == pytest.approx(50.0)


def test_in_an_idle_class_a_newcomer_is_lifted_to_the_most_that_a_tenant_left_with() -> None:
    ledger = Ledger(default_policy())
    much, little = entered(ledger, 1, "low", "much"), entered(ledger, 2, "low", "little")
    ledger.charge(much, 30.0)
    ledger.charge(little, 10.0)
    ledger.leave(much)
    ledger.leave(little)
    entered(ledger, 3, "low", "newcomer")
    assert ledger.classes["low"].tenants["newcomer"].counter(0) == pytest.approx(30.0)


def test_those_that_wait_are_counted_by_class_and_tenant() -> None:
    ledger = Ledger(default_policy())
    ledger.queued(entered(ledger, 1, "low"), 1)
    account = ledger.classes["low"]
    assert (account.num_queued, account.tenants["t"].num_queued) == (1, 1)


def test_a_dearer_prompt_token_costs_more() -> None:
    ledger = Ledger(with_rules(default_policy(), fairness={"prompt_token_cost": 3.0}))
    assert ledger.prompt_cost(100, 40) == pytest.approx(60 * 3.0 + 40 * CACHED_COST)


def test_idling_and_returning_does_not_lower_a_counter() -> None:
    ledger = Ledger(default_policy())
    first = entered(ledger, 1, "low", "rich")
    entered(ledger, 2, "low", "poor")
    ledger.charge(first, 500.0)
    ledger.leave(first)
    again = entered(ledger, 3, "low", "rich")
    assert ledger.counter(ledger.accounts_of(again)[1]) == pytest.approx(500.0)


def test_a_tenants_own_weight_halves_what_its_service_counts() -> None:
    ledger = Ledger(default_policy())
    heavy = entered(ledger, 1, "low", "heavy", weight=2.0)
    ledger.charge(heavy, 100.0)
    assert ledger.counter(ledger.accounts_of(heavy)[1]) == pytest.approx(50.0)


def test_equal_tenants_ignore_their_own_weights() -> None:
    ledger = Ledger(with_rules(default_policy(), fairness={"tenants": "equal"}))
    heavy = entered(ledger, 1, "low", "heavy", weight=2.0)
    ledger.charge(heavy, 100.0)
    assert ledger.counter(ledger.accounts_of(heavy)[1]) == pytest.approx(100.0)


def test_scaling_all_weights_changes_no_counter() -> None:
    policy = default_policy()
    scaled = policy.model_copy(
        update={"classes": tuple(one.model_copy(update={"weight": one.weight * 1000}) for one in policy.classes)}
    )
    counters = []
    for one in (policy, scaled):
        ledger = Ledger(one)
        ledger.charge(entered(ledger, 1, "low"), 10.0)
        counters.append(counter(ledger, "low"))
    assert counters[0] == pytest.approx(counters[1])


def test_new_weights_leave_past_service_as_it_was_counted() -> None:
    ledger = Ledger(default_policy())
    sequence = entered(ledger, 1, "low")
    ledger.join(sequence, 1)
    ledger.step = 5
    policy = default_policy()
    even = policy.model_copy(
        update={"classes": tuple(one.model_copy(update={"weight": 1.0}) for one in policy.classes)}
    )
    ledger.set_policy(even)
    ledger.step = 8
    assert counter(ledger, "low") == pytest.approx(5 * OUTPUT_COST / 0.1 + 3 * OUTPUT_COST * 3)


def test_a_new_price_counts_from_the_step_of_the_change() -> None:
    """Five steps at 2 and three at 4 a token, for the class and for its tenant."""
    ledger = Ledger(default_policy())
    ledger.join(entered(ledger, 1, "low"), 1)
    ledger.step = 5
    ledger.set_policy(with_rules(default_policy(), fairness={"output_token_cost": 4.0}))
    ledger.step = 8
    tenant = ledger.classes["low"].tenants["t"]
    assert (ledger.service("low"), tenant.service(8)) == (pytest.approx(22.0), pytest.approx(22.0))


def test_a_tenant_whose_weight_has_changed_counts_by_the_new_one_from_then_on() -> None:
    ledger = Ledger(default_policy())
    ledger.charge(entered(ledger, 1, "low", weight=1.0), 10.0)
    ledger.charge(entered(ledger, 2, "low", weight=2.0), 10.0)
    assert ledger.classes["low"].tenants["t"].counter(0) == pytest.approx(10.0 + 5.0)


def test_tenants_that_become_equal_count_at_their_full_price_from_then_on() -> None:
    ledger = Ledger(default_policy())
    sequence = entered(ledger, 1, "low", weight=2.0)
    ledger.charge(sequence, 10.0)
    ledger.set_policy(with_rules(default_policy(), fairness={"tenants": "equal"}))
    ledger.charge(sequence, 10.0)
    assert ledger.classes["low"].tenants["t"].counter(0) == pytest.approx(5.0 + 10.0)


def test_idle_tenants_are_forgotten_when_there_are_very_many() -> None:
    ledger = Ledger(default_policy())
    for number in range(1, 4200):
        ledger.leave(entered(ledger, number, "low", f"tenant-{number}"))
    keeper = entered(ledger, 5000, "low", "keeper")
    ledger.charge(keeper, 10.0)
    entered(ledger, 5001, "low", "newcomer")
    assert len(ledger.classes["low"].tenants) < 4200


def test_an_idle_tenant_that_is_ahead_is_remembered_and_one_at_the_least_is_not() -> None:
    ledger = Ledger(default_policy())
    keeper, ahead = entered(ledger, 1, "low", "keeper"), entered(ledger, 2, "low", "ahead")
    ledger.charge(keeper, 10.0)
    ledger.charge(ahead, 20.0)
    ledger.leave(ahead)
    for number in range(10, 9 + MAX_IDLE_TENANTS):
        ledger.leave(entered(ledger, number, "low", f"tenant-{number}"))
    entered(ledger, 9999, "low", "newcomer")
    assert set(ledger.classes["low"].tenants) == {"keeper", "ahead", "newcomer"}


def test_lead_is_measured_against_the_least_served_waiting_class() -> None:
    ledger = Ledger(default_policy())
    high, medium = entered(ledger, 1, "high"), entered(ledger, 2, "medium")
    entered(ledger, 3, "low")
    ledger.queued(high, 1)
    ledger.queued(medium, 1)
    ledger.charge(high, 70.0)
    ledger.charge(medium, 10.0)
    assert ledger.lead(ledger.classes["high"], {}) == pytest.approx(70 / 0.7 - 10 / 0.2)


def test_lead_counts_what_the_step_has_granted() -> None:
    ledger = Ledger(default_policy())
    high, medium = entered(ledger, 1, "high"), entered(ledger, 2, "medium")
    ledger.queued(high, 1)
    ledger.queued(medium, 1)
    assert ledger.lead(ledger.classes["high"], {"high": 30.0}) == pytest.approx(30.0)


def test_tier_credit_accrues_by_share_up_to_a_cap() -> None:
    ledger = Ledger(default_policy())
    ledger.accrue_tier_credit(100.0, cap=50.0)
    assert ledger.classes["low"].tier_credit == pytest.approx(50 * 0.1)


def test_tier_credit_begins_at_nothing() -> None:
    ledger = Ledger(default_policy())
    ledger.accrue_tier_credit(10.0, cap=50.0)
    assert ledger.classes["low"].tier_credit == pytest.approx(10 * 0.1)


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 50.0)), max_size=60))
def test_least_first_finds_the_least_whatever_grew(charges: list[tuple[int, float]]) -> None:
    accounts = [Account(str(number), number, 1.0) for number in range(10)]
    line = LeastFirst[Account](lambda one: (one.counter(0), one.number), lambda one: True)
    for account in accounts:
        line.push(account)
    for index, cost in charges:
        accounts[index].charge(cost)
        assert line.least() is min(accounts, key=lambda one: (one.counter(0), one.number))


def test_the_least_come_out_in_order_though_most_have_left_meanwhile() -> None:
    """Enough come and go that the line is swept, twice."""
    random = Random(5)
    present: set[int] = set()
    line = LeastFirst[Account](lambda one: (one.counter(0), one.number), lambda one: one.number in present)
    accounts = [Account(str(number), number, 1.0) for number in range(210)]
    for account in accounts:
        account.charge(random.random())
        present.add(account.number)
        line.push(account)
        if account.number == 150:
            present -= {number for number in range(150) if random.random() < 0.6}
    order = []
    while (account_or_none := line.least()) is not None:
        order.append(account_or_none.number)
        line.pop()
    assert order == sorted(present, key=lambda number: accounts[number].counter(0))


def test_a_member_that_is_let_in_twice_is_inside_once() -> None:
    member = Account("a", 0, 1.0)
    line = LeastFirst[Account](lambda one: (one.counter(0), one.number), lambda one: True)
    line.push(member)
    line.push(member)
    line.pop()
    assert line.least() is None


def test_a_member_that_was_taken_out_can_come_back() -> None:
    member = Account("a", 0, 1.0)
    line = LeastFirst[Account](lambda one: (one.counter(0), one.number), lambda one: True)
    line.push(member)
    line.pop()
    line.push(member)
    assert line.least() is member


def test_least_first_does_not_grow_with_members_that_come_and_go() -> None:
    present: set[str] = set()
    line = LeastFirst[Account](lambda one: (one.counter(0), one.number), lambda one: one.key in present)
    keeper = Account("keeper", 0, 1.0)
    present.add("keeper")
    line.push(keeper)
    for number in range(1, 5000):
        guest = Account(str(number), number, 1.0)
        guest.charge(1.0)
        present.add(guest.key)
        line.push(guest)
        present.discard(guest.key)
    assert len(line._heap) < 200


def backlogged(policy: Policy, mix: dict[str, tuple[int, int]], num_each: int = 400, tenants: int = 1) -> World:
    """Every class has more to do than there is time for; `mix` gives each class's prompt and output lengths."""
    world = World(policy=policy, capacity=a_capacity(num_slots=16, num_blocks=4096, max_model_len=2048), checks=False)
    for number in range(num_each):
        for class_id, (prompt, output) in mix.items():
            tenant = f"t{number % tenants}"
            world.add(f"{class_id}-{number}", class_id, prompt=prompt, max_tokens=output, tenant=tenant)
    return world


def served(world: World) -> dict[str, float]:
    return {one.id: world.scheduler.state.ledger.service(one.id) for one in world.policy.classes}


def test_backlogged_classes_are_served_by_weight_within_a_percentage_point() -> None:
    policy = with_rules(default_policy(), **NO_TIER)
    world = backlogged(policy, {"high": (400, 50), "medium": (100, 100), "low": (20, 200)}, num_each=4000)
    while sum(served(world).values()) < 200_000:
        world.step()
    before = served(world)
    while sum(served(world).values()) < sum(before.values()) + 1_000_000:
        world.step()
    after = served(world)
    total = sum(after.values()) - sum(before.values())
    shares = {name: (after[name] - before[name]) / total for name in after}
    assert shares == {
        "high": pytest.approx(0.7, abs=0.01),
        "medium": pytest.approx(0.2, abs=0.01),
        "low": pytest.approx(0.1, abs=0.01),
    }


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(*(st.tuples(st.integers(1, 600), st.integers(1, 100)) for _ in range(3))),
    num_steps=st.integers(50, 400),
)
def test_backlogged_counters_stay_within_the_vtc_bound(
    sizes: tuple[tuple[int, int], ...], num_steps: int
) -> None:
    """|W_i/w_i − W_j/w_j| ≤ 2 · (one prompt, or what a full batch may still decode) over the least weight.

    VTC's bound for a memory of M tokens is 2 · max(w_p · L_input, w_q · M); here a batch of S slots holds at most
    S · L_output output tokens that are yet to be charged.
    """
    policy = with_rules(default_policy(), **NO_TIER, fairness={"max_lead_tokens": 0.0})
    world = backlogged(policy, dict(zip(("high", "medium", "low"), sizes, strict=True)))
    longest_prompt = max(prompt for prompt, _ in sizes)
    longest_output = max(output for _, output in sizes)
    num_slots = world.capacity.num_slots
    for _ in range(num_steps):
        world.step()
    ledger = world.scheduler.state.ledger
    if not all(account.num_queued for account in ledger.classes.values()):
        return
    counters = [ledger.counter(account) for account in ledger.classes.values()]
    least_weight = min(account.weight for account in ledger.classes.values())
    bound = 2 * max(PROMPT_COST * longest_prompt, OUTPUT_COST * num_slots * longest_output) / least_weight
    assert max(counters) - min(counters) <= bound


def test_tenants_of_a_class_share_it_whatever_they_send() -> None:
    policy = with_rules(default_policy(), **NO_TIER)
    world = World(policy=policy, capacity=a_capacity(num_slots=8, num_blocks=2048), checks=False)
    for number in range(3000):
        world.add(f"flood-{number}", "low", prompt=64, max_tokens=20, tenant="flood")
        if number % 5 == 0:
            world.add(f"calm-{number}", "low", prompt=64, max_tokens=20, tenant="calm")
    for _ in range(1500):
        world.step()
    tenants = world.scheduler.state.ledger.classes["low"].tenants
    assert tenants["calm"].num_queued > 0
    ledger = world.scheduler.state.ledger
    flood, calm = (ledger.counter(tenants[name]) for name in ("flood", "calm"))
    assert calm == pytest.approx(flood, rel=0.02)


def test_a_late_flood_does_not_stop_a_tenant_that_came_before() -> None:
    world = World(policy=with_rules(default_policy(), **NO_TIER), capacity=a_capacity(num_slots=1), checks=False)
    for number in range(40):
        world.add(f"flood-{number}", "low", prompt=16, max_tokens=4, tenant="flood")
    world.step()
    world.add("calm", "low", prompt=16, max_tokens=4, tenant="calm")
    world.run()
    assert world.started().index("calm") <= 2


def test_an_idle_class_leaves_its_share_to_the_others() -> None:
    world = World(capacity=a_capacity(num_slots=4))
    for number in range(8):
        world.add(f"low-{number}", "low", prompt=16, max_tokens=4)
    world.step()
    assert len(world.plans[0].chunks) == 4
