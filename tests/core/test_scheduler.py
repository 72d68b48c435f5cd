"""The verbs: a request's way through the scheduler, step by step, with the arithmetic in sight."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler_worker.core.applying import BadResult
from scheduler_worker.core.booking import StalePlan
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import (
    EventKind,
    FilledBlock,
    FinishReason,
    Reason,
    RowResult,
    StepPlan,
    StepResult,
)
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import IllegalTransition, SequenceState
from tests.core.worlds import World, a_capacity, with_rules

BLOCK = 16


def tokens_of(plan: StepPlan | None) -> dict[str, int]:
    assert plan is not None
    return {chunk.seq_id: chunk.num_tokens for chunk in plan.chunks}


def test_a_request_waits_until_it_is_claimed() -> None:
    world = World()
    world.add("a")
    assert world.scheduler.plan_step(world.now) is None


def test_the_first_step_computes_the_whole_prompt_and_samples() -> None:
    world = World()
    world.add("a", prompt=20, max_tokens=3)
    plan = world.launch()
    assert plan is not None
    chunk = plan.chunks[0]
    assert (chunk.start, chunk.num_tokens, chunk.samples, chunk.first) == (0, 20, True, True)
    assert len(chunk.new_blocks) == 2


def test_decodes_follow_one_token_at_a_time() -> None:
    world = World()
    world.add("a", prompt=20, max_tokens=3)
    starts = []
    while (plan := world.step()) is not None:
        starts.append(plan.chunks[0].start)
    assert starts == [0, 20, 21]


def test_it_ends_at_its_length() -> None:
    world = World()
    world.add("a", prompt=20, max_tokens=3)
    world.run()
    assert (world.finished["a"].reason, world.finished["a"].num_generated_tokens) == (FinishReason.LENGTH, 3)


def test_it_ends_when_the_executor_says_stop() -> None:
    world = World()
    world.add("a", prompt=20, max_tokens=30, length=2)
    world.run()
    assert (world.finished["a"].reason, world.finished["a"].num_generated_tokens) == (FinishReason.STOP, 2)


def test_a_stop_without_a_token_counts_none() -> None:
    world = World()
    world.add("a", prompt=4, max_tokens=9)
    plan = world.launch()
    assert plan is not None
    applied = world.scheduler.apply_result(StepResult(1, (RowResult("a", 0, stopped=True),), 0.01), 0.01)
    assert applied.finished[0].num_generated_tokens == 0


def test_the_answer_is_cut_at_the_context() -> None:
    world = World(capacity=a_capacity(max_model_len=64))
    world.add("a", prompt=60, max_tokens=500)
    world.run()
    assert world.finished["a"].num_generated_tokens == 4


@pytest.mark.parametrize(
    ("prompt", "words"), [(0, "empty"), (1024, "leaves no room"), (2000, "leaves no room")], ids=str
)
def test_a_prompt_that_can_never_run_ends_at_once(prompt: int, words: str) -> None:
    applied = World().add("a", prompt=prompt)
    assert applied.finished[0].reason is FinishReason.FAILED
    assert words in (applied.finished[0].error or "")


def test_more_blocks_than_there_are_end_a_request_at_once() -> None:
    applied = World(capacity=a_capacity(num_blocks=4)).add("a", prompt=60, max_tokens=6)
    assert "5 KV blocks and this worker has 4" in (applied.finished[0].error or "")


def test_just_as_many_blocks_as_there_are_will_do() -> None:
    world = World(capacity=a_capacity(num_blocks=4))
    world.add("a", prompt=60, max_tokens=5)
    world.run()
    assert world.finished["a"].num_generated_tokens == 5


def test_adding_twice_changes_nothing() -> None:
    world = World()
    world.add("a")
    header = world.scheduler.state.sequences["a"].header
    assert world.scheduler.add(header, world.now).events == ()


def test_a_later_attempt_replaces_an_earlier_one_and_goes_on_after_its_tokens() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    header = replace(world.scheduler.state.sequences["a"].header, attempt=1, num_generated_tokens=3)
    applied = world.take(world.scheduler.add(header, world.now))
    assert applied.finished[0].reason is FinishReason.WITHDRAWN
    plan = world.launch()
    assert plan is not None
    assert plan.chunks[0].num_tokens == 13


def test_a_later_attempt_of_a_running_request_waits_until_the_device_let_go() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    world.launch()
    header = replace(world.scheduler.state.sequences["a"].header, attempt=1)
    world.take(world.scheduler.add(header, world.now))
    assert "a" not in world.scheduler.state.sequences
    world.land()
    assert world.scheduler.state.sequences["a"].header.attempt == 1


def test_a_requeued_request_that_had_all_its_tokens_is_over() -> None:
    applied = World().add("a", prompt=10, max_tokens=5, num_generated_tokens=5, attempt=1)
    assert applied.finished[0].reason is FinishReason.LENGTH


def test_cancelling_a_waiting_request_ends_it() -> None:
    world = World()
    world.add("a")
    world.take(world.scheduler.cancel("a", world.now))
    assert world.finished["a"].reason is FinishReason.CANCELLED


def test_cancelling_in_flight_drops_the_token_and_releases_after_the_step() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    world.launch()
    cancelled = world.take(world.scheduler.cancel("a", world.now))
    assert (len(cancelled.finished), cancelled.released) == (1, ())
    applied = world.land()
    assert (applied.tokens, applied.released) == (None, ("a",))


def test_cancelling_between_steps_releases_at_once() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    world.step()
    assert world.take(world.scheduler.cancel("a", world.now)).released == ("a",)


def test_unknown_ids_are_ignored() -> None:
    world = World()
    assert world.scheduler.cancel("nobody", 0.0).finished == ()
    assert world.scheduler.withdraw(["nobody"], 0.0).finished == ()


def test_a_withdrawn_request_is_no_longer_a_candidate() -> None:
    world = World()
    world.add("a")
    world.take(world.scheduler.withdraw(["a"], world.now))
    assert world.scheduler.claim_candidates(world.now) == ()


def test_a_running_request_that_another_worker_took_is_said_to_be_elsewhere() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    world.launch()
    applied = world.take(world.scheduler.withdraw(["a"], world.now))
    assert [(one.kind, one.reason) for one in applied.events] == [
        (EventKind.FINISHED, Reason.CLAIMED_ELSEWHERE)
    ]


def test_one_failed_row_ends_one_sequence() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=5)
    world.add("b", prompt=10, max_tokens=5)
    world.launch()
    world.land(failed=["a"])
    assert (world.finished["a"].reason, world.finished["a"].error) == (FinishReason.FAILED, "a bad row")
    world.run()
    assert world.finished["b"].num_generated_tokens == 5


def test_planning_twice_gives_equal_plans() -> None:
    world = World()
    world.add("a")
    world.claim()
    assert world.scheduler.plan_step(0.0) == world.scheduler.plan_step(0.0)


def test_a_plan_cannot_be_begun_twice() -> None:
    world = World()
    world.add("a")
    plan = world.launch()
    assert plan is not None
    with pytest.raises(StalePlan, match="step 1 cannot follow step 1"):
        world.scheduler.begin(plan)


def test_a_plan_that_names_somebody_who_left_is_refused() -> None:
    world = World()
    world.add("a")
    world.claim()
    plan = world.scheduler.plan_step(world.now)
    assert plan is not None
    world.scheduler.cancel("a", world.now)
    with pytest.raises(StalePlan, match="names a, which cannot run"):
        world.scheduler.begin(plan)


def test_a_plan_made_for_other_decodes_is_refused() -> None:
    world = World()
    world.add("a")
    world.step()
    plan = world.scheduler.plan_step(world.now)
    assert plan is not None
    world.scheduler.cancel("a", world.now)
    with pytest.raises(StalePlan, match="other decoding sequences"):
        world.scheduler.begin(plan)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (StepResult(2, (RowResult("a", 1),), 0.1), "the oldest begun step is 1"),
        (StepResult(1, (), 0.1), "1 chunks, its result 0 rows"),
        (StepResult(1, (RowResult("b", 1),), 0.1), "keep the order"),
        (StepResult(1, (RowResult("a", 0),), 0.1), "0 tokens for a"),
        (StepResult(1, (RowResult("a", 2),), 0.1), "2 tokens for a"),
    ],
    ids=["step", "rows", "order", "none", "two"],
)
def test_a_result_that_does_not_fit_is_refused(result: StepResult, words: str) -> None:
    world = World()
    world.add("a")
    world.launch()
    with pytest.raises(BadResult, match=words):
        world.scheduler.apply_result(result, 0.1)


def test_a_result_for_no_step_is_refused() -> None:
    with pytest.raises(BadResult, match="no step is in flight"):
        World().scheduler.apply_result(StepResult(1, (), 0.1), 0.1)


def test_an_illegal_transition_raises() -> None:
    world = World()
    world.add("a")
    with pytest.raises(IllegalTransition, match="cannot go from waiting to running"):
        world.scheduler.state.sequences["a"].move(SequenceState.RUNNING)


# Two steps in flight


def deep() -> World:
    return World(capacity=a_capacity(max_in_flight_steps=2))


def test_the_next_step_is_planned_on_a_token_that_is_still_on_its_way() -> None:
    world = deep()
    world.add("a", prompt=10, max_tokens=5)
    first, second = world.launch(), world.launch()
    assert first is not None
    assert second is not None
    assert second.chunks[0].start == 10


def test_no_third_step_is_planned() -> None:
    world = deep()
    world.add("a", prompt=10, max_tokens=5)
    assert [world.launch() is None for _ in range(3)] == [False, False, True]


def test_no_token_is_booked_beyond_the_length() -> None:
    world = deep()
    world.add("a", prompt=10, max_tokens=2)
    plans = [world.launch(), world.launch()]
    world.land()
    assert world.launch() is None
    world.land()
    assert all(plans)
    assert world.finished["a"].num_generated_tokens == 2


def test_a_token_after_the_stop_is_dropped_and_blocks_wait_for_the_last_step() -> None:
    world = deep()
    world.add("a", prompt=10, max_tokens=9, length=1)
    world.launch()
    world.launch()
    stopped = world.land()
    assert (stopped.finished[0].num_generated_tokens, stopped.released) == (1, ())
    assert world.scheduler.state.pool.num_used == 1
    late = world.land()
    assert (late.tokens, late.released) == (None, ("a",))
    assert world.scheduler.state.pool.num_used == 0


def test_known_tokens_exclude_those_in_flight() -> None:
    world = deep()
    world.add("a", prompt=10, max_tokens=9)
    world.launch()
    world.launch()
    world.land()
    assert world.scheduler.snapshot(world.now).sequences[0].num_generated_tokens == 1


# Chunked prefill


def test_a_long_prompt_is_computed_in_chunks() -> None:
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 100, "max_chunk_tokens": 64})
    world = World(policy=policy)
    world.add("a", prompt=150, max_tokens=1)
    sizes = []
    while (plan := world.step()) is not None:
        sizes.append(plan.chunks[0].num_tokens)
    assert sizes == [64, 64, 22]


def test_decodes_come_before_prompts_in_the_budget() -> None:
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 32, "max_chunk_tokens": 32})
    world = World(policy=policy)
    world.add("a", prompt=32, max_tokens=9)
    world.step()
    world.add("b", prompt=100, max_tokens=9)
    assert tokens_of(world.step()) == {"a": 1, "b": 31}


def test_a_slot_is_granted_only_while_budget_remains() -> None:
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 32, "max_chunk_tokens": 32})
    world = World(policy=policy)
    for name in "abc":
        world.add(name, prompt=20, max_tokens=9)
    assert tokens_of(world.step()) == {"a": 20, "b": 12}


def test_the_chunk_keeps_the_tightest_running_tpot_objective() -> None:
    """High's TPOT is 25 ms, 95 % of it to fill; 2 ms + 0.01 ms a row + 0.4 ms a prompt token: 54 tokens fit."""
    world = World()
    figures = {"base_s": 0.002, "decode_row_s": 1e-5, "prefill_token_s": 4e-4, "num_observed": 1000.0}
    world.scheduler = Scheduler(world.policy, world.capacity, cost_model=CostModel(figures))
    world.add("a", "high", prompt=16, max_tokens=9)
    world.step()
    world.add("b", "low", prompt=500, max_tokens=9)
    world.claim()
    plan = world.scheduler.plan_step(world.now)
    assert plan is not None
    assert tokens_of(plan)["b"] == int((0.95 * 0.025 - 0.002 - 1e-5) / 4e-4)


def test_the_longest_resident_prompt_moves_on_beside_fresh_short_ones() -> None:
    policy = with_rules(default_policy(), step={"max_num_batched_tokens": 128, "max_chunk_tokens": 128})
    world = World(policy=policy, capacity=a_capacity(num_slots=8, num_blocks=256, max_model_len=4096))
    world.add("long", "low", prompt=2000, max_tokens=2)
    world.step()
    for number in range(400):
        world.add(f"short-{number}", "high", prompt=100, max_tokens=1)
        plan = world.step()
        assert plan is not None
        if "long" in world.finished:
            break
        assert any(chunk.seq_id == "long" for chunk in plan.chunks)
    assert number <= 2000 / (32 - 1) + 5  # a quarter of the budget, less a decode


# Prefix cache


def test_a_known_prefix_counts_as_computed() -> None:
    world = World()
    hashes = (11, 12, 13)
    world.add("a", prompt=50, max_tokens=1, block_hashes=hashes)
    world.run()
    world.add("b", prompt=50, max_tokens=1, block_hashes=hashes)
    plan = world.launch()
    assert plan is not None
    assert (plan.chunks[0].start, plan.chunks[0].num_tokens) == (48, 2)


def test_the_last_token_is_computed_even_when_all_blocks_are_known() -> None:
    world = World()
    world.add("a", prompt=48, max_tokens=1, block_hashes=(11, 12, 13))
    world.run()
    world.add("b", prompt=48, max_tokens=1, block_hashes=(11, 12, 13))
    plan = world.launch()
    assert plan is not None
    assert plan.chunks[0].start == 32


def test_two_running_sequences_share_the_blocks_of_a_prefix() -> None:
    world = World()
    world.add("a", prompt=50, max_tokens=20, block_hashes=(11, 12, 13))
    world.step()
    used = world.scheduler.state.pool.num_used
    world.add("b", prompt=50, max_tokens=20, block_hashes=(11, 12, 13))
    world.step()
    assert world.scheduler.state.pool.num_used == used + 1


def test_a_hit_is_charged_at_the_price_of_cached_tokens() -> None:
    world = World()
    world.add("a", prompt=48 + 2, max_tokens=1, block_hashes=(11, 12, 13))
    world.run()
    before = world.scheduler.state.ledger.service("low")
    world.add("b", prompt=48 + 2, max_tokens=1, block_hashes=(11, 12, 13))
    world.run()
    assert world.scheduler.state.ledger.service("low") - before == pytest.approx(48 * 0.1 + 2 * 1.0 + 1 * 2.0)


def test_blocks_that_the_executor_reports_become_known() -> None:
    world = World()
    world.add("a", prompt=20, max_tokens=1)
    plan = world.launch()
    assert plan is not None
    filled = (FilledBlock("a", 0, 77),)
    world.now = 0.1
    world.launched.clear()
    world.take(world.scheduler.apply_result(StepResult(1, (RowResult("a", 1),), 0.1, filled), world.now))
    world.add("b", prompt=20, max_tokens=1, block_hashes=(77,))
    hit = world.launch()
    assert hit is not None
    assert hit.chunks[0].start == BLOCK


# Out of memory


def test_an_out_of_memory_step_is_planned_again_smaller_with_whole_tables() -> None:
    world = World()
    for number in range(8):
        world.add(f"r{number}", prompt=16, max_tokens=9)
    world.step()
    world.launch()
    world.launched.clear()
    applied = world.take(world.scheduler.fail_step(world.now))
    assert applied.events[0].reason is Reason.OUT_OF_MEMORY
    plan = world.launch()
    assert plan is not None
    assert len(plan.chunks) == 6
    assert all(chunk.first and chunk.start == 16 and chunk.num_tokens == 1 for chunk in plan.chunks)


def test_after_an_out_of_memory_step_everybody_still_gets_all_tokens() -> None:
    world = World(capacity=a_capacity(max_in_flight_steps=2))
    for number in range(8):
        world.add(f"r{number}", prompt=16, max_tokens=9)
    world.step()
    world.launch()
    world.launched.clear()
    world.take(world.scheduler.fail_step(world.now))
    world.run()
    assert {one.num_generated_tokens for one in world.finished.values()} == {9}


def test_a_sequence_that_does_not_fit_even_alone_ends_with_an_error() -> None:
    world = World()
    world.add("a", prompt=200, max_tokens=9)
    for _ in range(20):
        if world.launch() is None:
            break
        world.launched.clear()
        world.take(world.scheduler.fail_step(world.now))
    assert world.finished["a"].reason is FinishReason.FAILED
    assert "no memory" in (world.finished["a"].error or "")


# Events and views


def test_events_tell_the_story_of_a_request() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=2)
    world.run()
    kinds = [event.kind for event in world.events]
    assert kinds == [EventKind.QUEUED, EventKind.SCHEDULED, EventKind.FIRST_TOKEN, EventKind.FINISHED]


def test_tokens_of_a_step_are_one_event() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=2)
    world.add("b", prompt=10, max_tokens=2)
    world.launch()
    applied = world.land()
    assert applied.tokens is not None
    assert applied.tokens.rows == (("a", 1), ("b", 1))


def test_the_breakdown_of_a_finished_request_adds_up() -> None:
    world = World()
    world.add("a", prompt=10, max_tokens=4)
    world.now += 1.0
    world.run()
    one = world.finished["a"]
    assert one.wait_s == pytest.approx(1.0)
    assert (one.prefill_s or 0) + (one.decode_s or 0) == pytest.approx(world.now - 1.0)


def test_the_snapshot_counts_who_waits_and_who_runs() -> None:
    world = World(capacity=a_capacity(num_slots=2))
    for number in range(5):
        world.add(f"r{number}", "low", prompt=10, max_tokens=50)
    world.step()
    world.now += 2.0
    low = next(one for one in world.scheduler.snapshot(world.now).classes if one.class_id == "low")
    assert (low.num_running, low.num_waiting, low.num_parked) == (2, 3, 0)
    assert low.oldest_wait_s == pytest.approx(world.now)
    assert low.num_late == 0 or low.num_late == 3


def test_a_worker_without_sequences_has_no_work() -> None:
    world = World()
    world.add("a")
    assert not world.scheduler.has_work()
    world.claim()
    assert world.scheduler.has_work()
    world.run()
    assert not world.scheduler.has_work()


def test_prompts_go_on_in_small_chunks_when_decodes_alone_are_too_slow_and_prompt_tokens_seem_free() -> None:
    world = World(capacity=a_capacity(num_blocks=256, max_model_len=4096))
    world.scheduler.state.cost_model = CostModel({"base_s": 5.0, "num_observed": 1000.0})
    world.add("decodes", prompt=4, max_tokens=8)
    world.step()
    world.add("reads", prompt=900, max_tokens=2)
    assert 0 < tokens_of(world.launch())["reads"] < 900
