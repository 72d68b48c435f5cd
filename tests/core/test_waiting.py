"""Who waits and why: what the snapshot says of the queue is what the scheduler does next."""

from __future__ import annotations

import pytest

from scheduler_worker.core.plan import ClassView, TenantView, WaitReason
from scheduler_worker.core.policy import Policy, check_policy
from tests.core.worlds import World, a_capacity


def policy(**sections: object) -> Policy:
    """Two classes of equal weight that nobody has to hurry for."""
    slo = {"ttft_s": 100, "tpot_s": 10, "target": 0.9}
    classes = [
        {"id": name, "rank": rank, "weight": 1, "slo": slo, "max_wait_s": 500}
        for rank, name in enumerate(("high", "low"))
    ]
    return check_policy({"classes": classes, **sections})


def view(world: World, class_id: str = "low") -> ClassView:
    return next(one for one in world.scheduler.snapshot(world.now).classes if one.class_id == class_id)


def of(world: World, tenant: str, class_id: str = "low") -> TenantView:
    return next(one for one in view(world, class_id).tenants if one.tenant == tenant)


def a_world(num_slots: int = 2, **changes: float) -> World:
    return World(policy(), a_capacity(num_slots=num_slots, **changes))


def test_a_full_worker_says_that_all_slots_are_busy() -> None:
    world = a_world()
    for number in range(3):
        world.add(f"r{number}", tenant=f"t{number}", max_tokens=20)
    world.step()
    waits = of(world, "t2")
    assert (waits.reason, waits.numbers["num_running"], waits.num_ahead) == (WaitReason.ALL_SLOTS, 2, 0)


def test_a_batch_limit_below_the_slots_is_named() -> None:
    world = World(policy(batch_limit={"min_slots": 1, "max_slots": 1}), a_capacity())
    world.add("a", max_tokens=20)
    world.add("b", tenant="u", max_tokens=20)
    world.step()
    assert of(world, "u").reason is WaitReason.BATCH_LIMIT


def test_a_request_that_lacks_blocks_says_how_many() -> None:
    world = a_world(num_slots=8, num_blocks=8)
    world.add("a", prompt=64, max_tokens=48)  # 7 of the 8 blocks, with its growth
    world.step()
    world.add("b", tenant="u", prompt=64, max_tokens=8)
    waits = of(world, "u")
    assert (waits.reason, waits.numbers["num_free_slots"]) == (WaitReason.NO_BLOCKS, 7)
    assert waits.numbers["num_blocks"] > 0


def test_a_request_with_room_is_only_not_claimed_yet() -> None:
    world = a_world()
    world.add("a")
    waits = of(world, "t")
    assert (waits.reason, waits.numbers["num_free_slots"]) == (WaitReason.NOT_CLAIMED, 2)


def test_a_claimed_request_waits_still() -> None:
    world = a_world()
    world.add("a")
    world.claim()
    assert (view(world).num_waiting, of(world, "t").reason) == (1, WaitReason.CLAIMED)


def test_beyond_the_free_slots_others_go_first() -> None:
    world = a_world()
    for number in range(3):
        world.add(f"r{number}", tenant=f"t{number}")
    waits = of(world, "t2")
    assert (waits.reason, waits.num_ahead, waits.numbers["first_tenant"]) == (WaitReason.OTHERS_FIRST, 2, "t0")


def test_prompts_that_fill_the_next_steps_are_named() -> None:
    world = World(policy(step={"max_num_batched_tokens": 64, "max_chunk_tokens": 64}))
    world.add("a", prompt=300)
    world.claim()
    world.add("b", tenant="u")
    waits = of(world, "u")
    assert (waits.reason, waits.numbers["num_step_tokens"]) == (WaitReason.STEP_FULL, 64)


def served_more(world: World) -> None:
    """Tenant b runs alone on the only slot; then a comes too, and both wait."""
    world.add("b0", tenant="b", max_tokens=60)
    world.add("a0", tenant="a", max_tokens=60)
    for _ in range(80):
        world.step()
    world.add("b1", tenant="b", prompt=200, max_tokens=60)
    world.step()
    world.add("b2", tenant="b")
    world.add("a1", tenant="a")


def test_a_tenant_that_had_more_waits_for_the_one_that_had_less() -> None:
    world = a_world(num_slots=1)
    served_more(world)
    waits = of(world, "b")
    assert (waits.numbers["first_tenant"], waits.numbers["tenant_turn"]) == ("a", "only_class_waiting")
    assert waits.numbers["lead_tokens"] > 0


def test_who_is_said_to_go_first_does() -> None:
    world = a_world(num_slots=1)
    served_more(world)
    first = str(of(world, "b").numbers["first_tenant"])
    begun = len(world.events)
    while not [one for one in world.events[begun:] if one.kind == "scheduled"]:
        world.step()
    started = next(one for one in world.events[begun:] if one.kind == "scheduled")
    assert (started.tenant, first) == ("a", "a")


def test_a_class_that_had_less_is_named() -> None:
    world = a_world(num_slots=1)
    world.add("l0", "low", max_tokens=60)
    world.step()
    world.step()
    world.add("l1", "low", tenant="u")
    world.add("h0", "high", tenant="v")
    waits = of(world, "u")
    assert (waits.numbers["first_class"], waits.numbers["class_turn"]) == ("high", "turn")


def test_only_a_few_tenants_are_listed_and_all_are_counted() -> None:
    world = a_world(num_slots=1)
    for number in range(20):
        world.add(f"r{number}", tenant=f"t{number:02}", max_tokens=50)
    shown = view(world)
    assert [one.tenant for one in shown.tenants] == [f"t{number:02}" for number in range(6)]
    assert (shown.num_tenants, shown.num_waiting) == (20, 20)


def test_looking_changes_nothing() -> None:
    def run(looks: bool) -> list[object]:
        world = a_world()
        for number in range(12):
            world.add(f"r{number}", ("high", "low")[number % 2], tenant=f"t{number % 3}", max_tokens=9)
        while world.scheduler.has_work() or len(world.scheduler.state.waiting):
            if looks:
                world.scheduler.snapshot(world.now)
            world.step()
        return [(one.at, one.kind, one.seq_id) for one in world.events]

    assert run(looks=True) == run(looks=False)


def test_late_are_those_that_have_waited_past_their_objective() -> None:
    world = a_world(num_slots=1)
    world.add("now", at=-50.0, max_tokens=50)
    world.step()
    for number, waited_s in enumerate((99.0, 101.0, 102.0)):
        world.add(f"r{number}", at=world.now - waited_s)
    assert view(world).num_late == 2


@pytest.mark.parametrize("tenants", ["own_weights", "equal"])
def test_services_add_up_to_the_class(tenants: str) -> None:
    world = World(policy(fairness={"tenants": tenants}), a_capacity())
    for number in range(3):
        world.add(f"r{number}", tenant=f"t{number}", tenant_weight=1.0 + number)
    for _ in range(5):
        world.step()
    shown = view(world)
    assert sum(one.service_tokens for one in shown.services.values()) == pytest.approx(shown.service_tokens)
