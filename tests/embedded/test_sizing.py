"""From measured speed to a first policy and a load."""

from __future__ import annotations

import pytest

from controlplane.embedded.sizing import BURST_SHARE, Speed, size_load, size_policy
from scheduler_worker.core.policy import check_policy

SLOW = Speed(
    prefill_tokens_per_s=400, decode_step_s={1: 0.05, 2: 0.055, 4: 0.08, 8: 0.12, 16: 0.13, 32: 0.19}
)
FAST = Speed(prefill_tokens_per_s=40_000, decode_step_s={1: 0.002, 8: 0.002, 128: 0.004})


@pytest.mark.parametrize("speed", [SLOW, FAST], ids=["cpu", "gpu"])
def test_the_policy_is_valid(speed: Speed) -> None:
    assert check_policy(size_policy(speed).model_dump(mode="json")) == size_policy(speed)


def test_a_tight_promise_is_a_multiple_of_the_measured_step() -> None:
    # twice the step at batch 8
    assert size_policy(SLOW).classes[0].slo.tpot_s == pytest.approx(2 * 0.12)


def test_the_first_token_may_take_three_times_a_long_prompt_and_a_step() -> None:
    # 3 × (256 / 400 + 0.12) = 2.28, rounded up to two digits
    assert size_policy(SLOW).classes[0].slo.ttft_s == pytest.approx(2.3)


def test_a_fast_machine_promises_no_less_than_people_notice() -> None:
    assert size_policy(FAST).classes[0].slo.ttft_s == pytest.approx(0.1)


def test_a_rescue_begins_before_the_step_in_which_the_objective_passes() -> None:
    # decisions fall once a step of 0.12 s
    assert size_policy(SLOW).step.rescue_within_s == pytest.approx(2 * 0.12)


def test_less_urgent_classes_promise_less() -> None:
    promises = [(one.slo.ttft_s, one.slo.tpot_s) for one in size_policy(SLOW).classes]
    assert promises == sorted(promises)


def test_the_batch_stays_within_the_tightest_promise() -> None:
    # 0.19 s at 32 slots is below 0.24 / 1.2 = 0.2 s
    assert size_policy(SLOW).batch_limit.max_slots == 32


def test_a_machine_too_slow_for_any_batch_still_gets_a_slot() -> None:
    crawling = Speed(prefill_tokens_per_s=10, decode_step_s={1: 2.0})
    assert size_policy(crawling).batch_limit.max_slots == 1


def test_requests_per_second_follow_from_both_phases() -> None:
    # 45 tokens at 8 / 0.12 = 66.7 tokens/s, and 80 prompt tokens at 400/s: 0.675 + 0.2 s
    assert SLOW.requests_per_s == pytest.approx(1 / 0.875)


def test_a_burst_asks_for_more_than_the_machine_can_do() -> None:
    assert size_load(SLOW).burst_rate_per_s == pytest.approx(BURST_SHARE * SLOW.requests_per_s, abs=0.001)


def test_the_resting_load_of_a_fast_machine_is_capped() -> None:
    assert size_load(FAST).rate_per_s == 5.0


def test_measurements_survive_json() -> None:
    assert Speed.from_json({"prefill_tokens_per_s": 400, "decode_step_s": {"1": 0.05}}).usual_step_s == 0.05
