"""A plan's chunks by columns are the chunks one by one, and cost what changes."""

from __future__ import annotations

import pytest

from scheduler_worker.core.applying import BadResult
from scheduler_worker.core.chunks import Emitted, StepChunks
from scheduler_worker.core.plan import Chunk, RowResult, StepPlan, StepResult
from tests.core.worlds import World, a_capacity


def a_decoding_world(num_rows: int = 3, **changes: float) -> World:
    """So many sequences of 16 tokens that decode, and one prompt that has just arrived."""
    world = World(capacity=a_capacity(**changes))
    for number in range(num_rows):
        world.add(f"r{number}", prompt=16, max_tokens=100)
    world.step()
    return world


def next_plan(world: World) -> StepPlan:
    world.claim()
    plan = world.scheduler.plan_step(world.now)
    assert plan is not None
    return plan


def columns_of(plan: StepPlan) -> StepChunks:
    assert isinstance(plan.chunks, StepChunks)
    return plan.chunks


def test_a_decoding_row_is_the_chunk_of_its_next_position() -> None:
    plan = next_plan(a_decoding_world())
    assert plan.chunks[0] == Chunk("r0", 0, 16, 1, True, False, plan.chunks[0].new_blocks)


def test_a_plan_says_what_each_decoding_row_comes_to_if_it_goes_on() -> None:
    rows = columns_of(next_plan(a_decoding_world(2))).decodes
    assert rows.expected == (RowResult("r0", 1), RowResult("r1", 1))


def test_an_executor_may_name_the_rows_that_did_not_go_on() -> None:
    world = a_decoding_world()
    plan = next_plan(world)
    world.scheduler.begin(plan)
    rows = (RowResult("r0", 1), RowResult("r1", 1, stopped=True), RowResult("r2", 1))
    applied = world.scheduler.apply_result(StepResult(plan.step, rows, 0.01, odd=(1,)), world.now)
    assert [one.seq_id for one in applied.finished] == ["r1"]


def test_chunks_are_equal_to_their_tuple_and_printed_as_it() -> None:
    world = a_decoding_world()
    world.add("late", prompt=40)
    chunks = next_plan(world).chunks
    assert (chunks, repr(chunks), hash(chunks)) == (tuple(chunks), repr(tuple(chunks)), hash(tuple(chunks)))


def test_a_chunk_alone_is_that_of_the_tuple() -> None:
    world = a_decoding_world()
    world.add("late", prompt=40)
    chunks = columns_of(next_plan(world))
    assert [chunks.at(place) for place in range(len(chunks))] == list(chunks)


def test_two_plans_of_one_state_are_equal() -> None:
    world = a_decoding_world()
    world.claim()
    assert world.scheduler.plan_step(world.now) == world.scheduler.plan_step(world.now)


def test_plans_share_their_columns_while_the_same_rows_decode() -> None:
    world = a_decoding_world()
    first, second = world.step(), world.step()
    assert first is not None
    assert second is not None
    assert columns_of(first).decodes is columns_of(second).decodes


def test_a_row_that_leaves_changes_the_columns_of_later_plans_only() -> None:
    world = a_decoding_world()
    before = columns_of(next_plan(world)).decodes
    world.take(world.scheduler.cancel("r0", world.now))
    after = columns_of(next_plan(world)).decodes
    assert (before.seq_ids, after.seq_ids) == (("r0", "r1", "r2"), ("r2", "r1"))


def test_a_plan_that_was_written_out_can_be_replayed() -> None:
    logged, replayed = a_decoding_world(), a_decoding_world()
    for world in (logged, replayed):
        world.add("late", prompt=40, max_tokens=3)
    for _ in range(40):
        logged.claim()
        replayed.claim()
        plan = logged.launch()
        if plan is not None:
            written_out = plan._replace(chunks=tuple(plan.chunks))
            replayed.scheduler.begin(written_out)
            replayed.execute(written_out)
            replayed.launched.append(written_out)
            replayed.events.extend(written_out.events)
            logged.land()
            replayed.land()
    assert (logged.events, logged.finished) == (replayed.events, replayed.finished)


def test_a_decoding_row_of_another_sequence_is_refused() -> None:
    world = a_decoding_world()
    plan = world.launch()
    assert plan is not None
    rows = [RowResult(chunk.seq_id, 1) for chunk in plan.chunks]
    with pytest.raises(BadResult, match="a row for r1 where the plan has r0"):
        world.scheduler.apply_result(StepResult(plan.step, (rows[1], rows[0], rows[2]), 0.01), world.now)


def test_a_decoding_row_that_stops_without_a_token_emits_none() -> None:
    world = a_decoding_world()
    plan = world.launch()
    assert plan is not None
    rows = [RowResult(chunk.seq_id, 1) for chunk in plan.chunks]
    rows[1] = RowResult("r1", 0, stopped=True)
    applied = world.scheduler.apply_result(StepResult(plan.step, tuple(rows), 0.01), world.now)
    assert applied.tokens is not None
    assert applied.tokens.rows == (("r0", 1), ("r2", 1))


def test_what_a_step_emitted_is_like_the_tuple_of_its_pairs() -> None:
    emitted, pairs = Emitted(("a", "b"), (("c", 1),)), (("a", 1), ("b", 1), ("c", 1))
    same = Emitted(("a", "b", "c"))
    assert (emitted, emitted[-1], emitted[1:], len(emitted)) == (pairs, pairs[-1], pairs[1:], 3)
    assert (hash(emitted), emitted == same, emitted == Emitted(("a",))) == (hash(pairs), True, False)
