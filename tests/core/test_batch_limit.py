"""The controller by itself, on steps of a given length."""

from __future__ import annotations

import pytest

from scheduler_worker.core.batch_limit import BatchLimit, LimitChange
from scheduler_worker.core.plan import EventKind
from scheduler_worker.core.policy import BatchLimit as Rules
from scheduler_worker.core.policy import default_policy
from tests.core.worlds import World, a_capacity

TPOT_S = 0.024
TARGET_S = TPOT_S / 1.2  # 20 ms
STEPS_A_DECISION = 10 * 20


class Steps:
    """Steps of a given length, one after the other."""

    def __init__(self, limit: BatchLimit) -> None:
        self.limit = limit
        self.at = 0.0
        self.num_steps = 0

    def run(
        self,
        num_steps: int,
        step_s: float,
        *,
        binding: bool = True,
        together: int = 1000,
        tpot_s: float | None = TPOT_S,
    ) -> list[LimitChange]:
        changes = []
        for _ in range(num_steps):
            self.at += step_s
            change = self.limit.step_applied(self.at, together, tpot_s, binding)
            if change is not None:
                changes.append(change)
        return changes


def a_limit(slots: int = 64, **rules: float) -> Steps:
    steps = Steps(BatchLimit(Rules(**rules), slots))  # type: ignore[arg-type]
    steps.run(1, 0.0)
    return steps


def test_it_starts_at_all_the_slots() -> None:
    assert a_limit(48).limit.limit == 48


def test_it_starts_at_the_policys_maximum() -> None:
    assert a_limit(48, max_slots=16).limit.limit == 16


def test_above_the_band_it_shrinks_by_four_after_twenty_samples() -> None:
    steps = a_limit()
    assert steps.run(STEPS_A_DECISION - 1, 0.0241) == []
    changes = steps.run(1, 0.0241)
    assert [(one.before, one.after) for one in changes] == [(64, 60)]
    assert changes[0].itl_s == pytest.approx(0.0241)
    assert changes[0].target_s == pytest.approx(TARGET_S)


def test_at_the_upper_edge_of_the_band_it_stays() -> None:
    assert a_limit().run(STEPS_A_DECISION, 1.199 * TARGET_S) == []


@pytest.mark.parametrize("step_s", [0.75, 0.25])
def test_exactly_on_the_edges_it_stays(step_s: float) -> None:
    """A target of 0.5 s with edges at 1.5 and 0.5 of it: figures that a float holds exactly."""
    steps = a_limit(64, itl_target_s=0.5, shrink_above=1.5, grow_below=0.5)
    steps.limit.limit = 32
    assert steps.run(STEPS_A_DECISION, step_s) == []


def test_a_sample_is_forgotten_after_twenty_others() -> None:
    """One of 100 ms in twenty leaves the mean at 22 ms, inside the band; two would not."""
    steps = a_limit()
    steps.run(10, 0.1)
    steps.run(STEPS_A_DECISION, 0.018)
    assert steps.run(10, 0.1) == []


def test_below_the_band_it_grows_by_four_when_it_binds() -> None:
    steps = a_limit(64)
    steps.limit.limit = 32
    assert [one.after for one in steps.run(STEPS_A_DECISION, 0.69 * TARGET_S)] == [36]


def test_at_the_lower_edge_of_the_band_it_stays() -> None:
    steps = a_limit(64)
    steps.limit.limit = 32
    assert steps.run(STEPS_A_DECISION, 0.701 * TARGET_S) == []


def test_it_does_not_grow_while_it_holds_nobody_back() -> None:
    steps = a_limit(64)
    steps.limit.limit = 32
    assert steps.run(3 * STEPS_A_DECISION, 0.001, binding=False) == []


def test_it_shrinks_even_when_it_holds_nobody_back() -> None:
    assert len(a_limit().run(STEPS_A_DECISION, 0.1, binding=False)) == 1


def test_binding_in_half_of_the_samples_is_enough_to_grow() -> None:
    steps = a_limit(64)
    steps.limit.limit = 32
    steps.run(STEPS_A_DECISION // 2, 0.001, binding=False)
    assert len(steps.run(STEPS_A_DECISION // 2, 0.001, binding=True)) == 1


def test_binding_in_fewer_is_not() -> None:
    steps = a_limit(64)
    steps.limit.limit = 32
    steps.run(11 * 10, 0.001, binding=False)
    assert steps.run(9 * 10, 0.001, binding=True) == []


def test_out_of_memory_tells_the_latency_that_was_measured_last() -> None:
    steps = a_limit(64)
    steps.run(10, 0.018)
    change = steps.limit.out_of_memory(8)
    assert (change.itl_s, change.target_s) == (pytest.approx(0.018), pytest.approx(TARGET_S))


def test_out_of_memory_before_any_measurement_tells_none() -> None:
    change = BatchLimit(Rules(), 64).out_of_memory(8)
    assert (change.itl_s, change.target_s) == (0.0, 0.0)


def test_the_history_is_cleared_after_each_change() -> None:
    steps = a_limit()
    assert len(steps.run(STEPS_A_DECISION, 0.1)) == 1
    assert steps.run(STEPS_A_DECISION - 1, 0.1) == []
    assert len(steps.run(1, 0.1)) == 1


def test_it_never_leaves_its_range() -> None:
    steps = a_limit(64, min_slots=60)
    steps.run(20 * STEPS_A_DECISION, 0.1)
    assert steps.limit.limit == 60
    steps.run(20 * STEPS_A_DECISION, 0.001)
    assert steps.limit.limit == 64


def test_the_policys_own_target_counts_before_the_objective() -> None:
    changes = a_limit(itl_target_s=0.005).run(STEPS_A_DECISION, 0.0061)
    assert [one.target_s for one in changes] == [0.005]


def test_steps_in_which_nobody_decodes_decide_nothing() -> None:
    assert a_limit().run(5 * STEPS_A_DECISION, 9.0, tpot_s=None) == []


def test_a_step_in_which_nobody_decodes_is_no_part_of_a_window() -> None:
    steps = a_limit()
    steps.run(5, 0.018)
    steps.run(1, 9.0, tpot_s=None)
    steps.run(11, 0.02)
    assert steps.limit.itl_s == pytest.approx(0.02)


@pytest.mark.parametrize("num_steps", [1, 5, 7, 10, 100])
def test_steps_are_held_against_the_objectives_that_they_were_planned_for(num_steps: int) -> None:
    """A class of 24 ms comes and goes beside one of 48 ms, and each step takes 95 % of the tighter one there is."""
    steps = a_limit()
    for _ in range(1000 // num_steps):
        assert steps.run(num_steps, 0.95 * 0.048, tpot_s=0.048) == []
        assert steps.run(num_steps, 0.95 * 0.024, tpot_s=0.024) == []


def test_the_target_is_the_mean_over_the_steps_that_were_measured() -> None:
    """Half of them for 48 ms, half for 24: 36 ms in the mean, 30 to aim at, and 45 ms are above 1.2 times that."""
    steps = a_limit()
    changes = [one for _ in range(20) for tpot_s in (0.048, 0.024) for one in steps.run(5, 0.045, tpot_s=tpot_s)]
    assert [(one.itl_s, one.target_s) for one in changes] == [(pytest.approx(0.045), pytest.approx(0.03))]
    assert (steps.limit.itl_s, steps.limit.target_s) == (pytest.approx(0.045), pytest.approx(0.03))


def test_a_window_has_a_target_of_its_own() -> None:
    steps = a_limit()
    steps.run(10, 0.04, tpot_s=0.048)
    steps.run(10, 0.02, tpot_s=0.024)
    assert steps.limit.target_s == pytest.approx(TARGET_S)


def test_a_window_that_nobody_decoded_through_is_no_sample() -> None:
    assert a_limit().run(2 * STEPS_A_DECISION, 0.1, together=9) == []


def test_a_window_that_somebody_decoded_through_is_one() -> None:
    assert len(a_limit().run(STEPS_A_DECISION, 0.1, together=10)) == 1


def test_a_restarted_window_forgets_the_idle_time() -> None:
    steps = a_limit()
    steps.limit.restart_window()
    steps.at += 100.0
    steps.run(11, 0.02)
    assert steps.limit.itl_s == pytest.approx(0.02)


def test_one_long_prefill_step_does_not_move_it() -> None:
    """One step of 200 ms in 200 of 18 ms: the mean is 18.9 ms, inside the band around 20 ms."""
    steps = a_limit()
    changes = steps.run(100, 0.018) + steps.run(1, 0.2) + steps.run(99, 0.018)
    assert changes == []


def test_new_rules_move_a_limit_outside_them_to_their_edge() -> None:
    steps = a_limit(64)
    steps.limit.set_rules(Rules(max_slots=10))
    assert steps.limit.limit == 10
    steps.limit.set_rules(Rules(min_slots=20))
    assert steps.limit.limit == 20


def test_a_minimum_above_the_slots_is_the_slots() -> None:
    assert BatchLimit(Rules(min_slots=8), 4).limit == 4


def test_out_of_memory_takes_a_quarter_of_what_ran_below_the_minimum_if_need_be() -> None:
    steps = a_limit(64, min_slots=8)
    assert steps.limit.out_of_memory(8).after == 6
    assert steps.limit.out_of_memory(1).after == 1


def test_below_the_minimum_it_does_not_jump_up_when_latency_is_high() -> None:
    steps = a_limit(64, min_slots=8)
    steps.limit.out_of_memory(4)
    steps.run(STEPS_A_DECISION, 0.1)
    assert steps.limit.limit == 3


def test_constant_load_settles_without_swinging() -> None:
    """ITL 1 ms + 0.5 ms a row, target 20 ms: every limit from 26 to 46 is inside the band."""
    steps = a_limit(64)
    limits = []
    for _ in range(40):
        steps.run(STEPS_A_DECISION, 0.001 + 0.0005 * steps.limit.limit)
        limits.append(steps.limit.limit)
    settled = limits[20:]
    assert max(settled) - min(settled) == 0
    assert 26 <= settled[0] <= 46


def test_it_recovers_after_a_burst() -> None:
    steps = a_limit(64)
    steps.run(10 * STEPS_A_DECISION, 0.05)
    assert steps.limit.limit == 24
    steps.run(10 * STEPS_A_DECISION, 0.01)
    assert steps.limit.limit == 64


# In the scheduler


def an_objective_that_comes_and_goes(depth: int, num_steps: int, share: float) -> World:
    """Two of low (100 ms) decode all the while; in every sixth step one of high (25 ms) comes for two of its own.

    Each step takes this share of the tightest objective among those that decode in it.
    """
    objective_s = {one.id: one.slo.tpot_s for one in default_policy().classes}
    world = World(capacity=a_capacity(num_slots=16, num_blocks=512, max_in_flight_steps=depth), checks=False)
    for name in ("low-1", "low-2"):
        world.add(name, "low", max_tokens=900)
    for number in range(num_steps):
        if number % 6 == 0:
            world.add(f"high-{number}", "high", max_tokens=3)
        plan = world.launch()
        assert plan is not None
        if len(world.launched) >= depth:
            decoding = [one.seq_id for one in world.launched[0].chunks[: world.launched[0].num_lockstep]]
            tightest_s = min((objective_s[one.split("-")[0]] for one in decoding), default=0.1)
            world.land(duration_s=share * tightest_s)
    return world


@pytest.mark.parametrize("depth", [1, 2])
def test_it_does_not_move_while_every_step_keeps_its_objective(depth: int) -> None:
    world = an_objective_that_comes_and_goes(depth, 800, 0.95)
    assert world.events_of(EventKind.BATCH_LIMIT_CHANGED) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_it_shrinks_once_steps_exceed_their_objectives(depth: int) -> None:
    world = an_objective_that_comes_and_goes(depth, 250, 1.05)
    assert [one.numbers["after"] for one in world.events_of(EventKind.BATCH_LIMIT_CHANGED)] == [12]


def test_it_comes_back_once_the_class_with_the_tight_objective_has_gone() -> None:
    """2 ms a row: 12 rows keep high's 25 ms and 16 do not; low's 100 ms leave room for all 16."""
    world = World(capacity=a_capacity(num_slots=16, num_blocks=512), checks=False)
    limits = []
    for class_ids in (("high", "low"), ("low",)):
        for number in range(1_500):
            for class_id in class_ids:
                if len(world.scheduler.state.waiting) < 32:
                    world.add(f"{class_id}-{len(limits)}-{number}", class_id, max_tokens=40)
            world.launch()
            world.land(duration_s=0.002 * len(world.plans[-1].chunks))
        limits.append(world.scheduler.state.batch_limit.limit)
    assert limits == [12, 16]
