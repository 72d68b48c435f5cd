"""Two steps in flight: what is decided now takes effect when no step names it any more, and a failed step comes to
nothing."""

from __future__ import annotations

import pytest

from scheduler_worker.core.plan import EventKind, FilledBlock, Reason, RowResult, StepPlan, StepResult
from scheduler_worker.core.sequence import FinishReason
from tests.core.worlds import World, a_capacity

ALL_TOKENS = {"holder": 60, "low": 40, "high": 5}


def a_world(**changes: float) -> World:
    values = {"num_slots": 2, "max_in_flight_steps": 2, "num_swap_blocks": 16, "swap_block_s": 1e-9, **changes}
    return World(capacity=a_capacity(**values))


def parked_by_priority(**changes: float) -> World:
    """A low sequence has just been asked to yield one of two slots while a step in flight still names it."""
    world = a_world(**changes)
    world.add("holder", "high", prompt=16, max_tokens=60)
    world.add("low", "low", prompt=32, max_tokens=40)
    for _ in range(3):
        world.step()
    world.add("high", "high", prompt=16, max_tokens=5, at=world.now - 0.07)
    world.launch()
    assert "low" in world.scheduler.state.vacating
    return world


def launched(world: World) -> StepPlan:
    plan = world.launch()
    assert plan is not None
    return plan


def tokens_of(world: World) -> dict[str, int]:
    return {name: one.num_generated_tokens for name, one in world.finished.items()}


def fail(world: World) -> None:
    """The device has no memory for anything that is in flight."""
    world.launched.clear()
    world.take(world.scheduler.fail_step(world.now))


def test_a_victim_is_copied_out_when_no_step_names_it_any_more() -> None:
    world = parked_by_priority()
    assert not any(plan.swap_outs for plan in world.plans)
    world.land()
    assert [one.seq_id for one in launched(world).swap_outs] == ["low"]


def test_the_taker_starts_in_the_step_that_copies_the_victim_out() -> None:
    world = parked_by_priority()
    world.land()
    assert [chunk.seq_id for chunk in launched(world).chunks] == ["holder", "high"]


def test_victim_and_taker_both_get_all_their_tokens() -> None:
    world = parked_by_priority()
    world.run()
    assert tokens_of(world) == ALL_TOKENS


def test_a_victim_computes_again_when_no_other_step_comes_in_which_it_could_be_copied() -> None:
    world = parked_by_priority()
    for name in ("high", "holder"):
        world.take(world.scheduler.cancel(name, world.now))
    world.run()
    assert world.finished["low"].num_generated_tokens == 40
    assert [event.reason for event in world.events_of(EventKind.RESUMED)] == [Reason.RECOMPUTES]


def test_a_victim_that_is_cancelled_while_it_is_named_gives_everything_back() -> None:
    world = parked_by_priority()
    world.take(world.scheduler.cancel("low", world.now))
    world.run()
    assert world.finished["low"].reason is FinishReason.CANCELLED
    assert world.scheduler.state.pool.num_used == 0


def test_a_copy_that_was_in_a_failed_step_is_not_trusted() -> None:
    world = parked_by_priority()
    world.land()
    assert launched(world).swap_outs
    fail(world)
    assert world.scheduler.state.num_checkpoint_blocks == 0
    world.run()
    assert world.finished["low"].num_generated_tokens == 40


def test_a_victim_that_was_named_by_a_failed_step_is_parked_all_the_same() -> None:
    world = parked_by_priority()
    fail(world)
    world.run()
    assert tokens_of(world) == ALL_TOKENS


def test_one_whose_last_token_was_in_a_failed_step_gets_it_later() -> None:
    world = a_world()
    world.add("a", prompt=16, max_tokens=2)
    launched(world)
    launched(world)
    assert "a" in world.scheduler.state.closing
    fail(world)
    world.run()
    assert world.finished["a"].num_generated_tokens == 2


def test_the_latency_of_steps_before_a_pause_is_not_counted_after_it() -> None:
    """Decoding ends, a prompt is read for a while, decoding begins anew: the window begins there."""
    world = World(capacity=a_capacity(max_model_len=4096, num_blocks=256))
    world.add("a", prompt=16, max_tokens=8)
    world.run()
    world.add("b", prompt=3000, max_tokens=40)
    world.run()
    itl_s = world.scheduler.state.batch_limit.itl_s
    assert itl_s is not None
    assert itl_s == pytest.approx(world.plans[-1].predicted_s, rel=0.05)


@pytest.mark.parametrize("index", [0, 5])
def test_a_block_that_is_not_the_next_of_its_table_continues_no_known_prefix(index: int) -> None:
    """Reported twice, or beyond the table: hashes stay those of a prefix without gaps."""
    world = World()
    world.add("a", prompt=20, max_tokens=40, block_hashes=(7,))
    plan = launched(world)
    filled = (FilledBlock("a", index, 77),)
    world.take(world.scheduler.apply_result(StepResult(plan.step, (RowResult("a", 1),), 0.01, filled), world.now))
    assert world.scheduler.state.sequences["a"].hashes == [7]


def test_a_prompt_takes_what_fits_into_its_own_blocks_when_no_other_is_free() -> None:
    """Chunks of 24 tokens in blocks of 16: the second chunk needs a block that a decoding row has just taken."""
    world = World(capacity=a_capacity(num_slots=4, num_blocks=6))
    for name in ("a", "b"):
        world.add(name, "high", prompt=15, max_tokens=30)
    world.step()
    world.add("long", "low", prompt=40, max_tokens=8)
    world.run()
    assert {one.num_generated_tokens for one in world.finished.values()} == {30, 8}


def test_a_row_that_kept_its_next_block_through_a_failed_step_gets_no_second_one() -> None:
    """Positions 15 and 16 were in flight, the latter with a block of its own."""
    world = World(capacity=a_capacity(max_in_flight_steps=2))
    world.add("a", prompt=14, max_tokens=40)
    sequence = world.scheduler.state.sequences["a"]
    while len(sequence.blocks) < 2:
        world.launch()
        if len(world.launched) == 2 and len(sequence.blocks) < 2:
            world.land()
    world.launched.clear()
    world.take(world.scheduler.fail_step(world.now))
    for _ in range(4):
        world.step()
    assert len(sequence.blocks) == 2
