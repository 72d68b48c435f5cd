"""At the door: guaranteed shares, what others leave, and when to come back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_worker.core.admission import (
    Admitted,
    Ask,
    Demand,
    MeanRequest,
    Refused,
    WorkerCapacity,
    decide,
    pool_rate,
    predict_start,
    rate_for,
    request_cost,
    shares,
    worker_rate,
)
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Reason, StepShape
from scheduler_worker.core.policy import Policy, default_policy
from tests.core.worlds import with_rules

RATE = 1000.0  # cost tokens per second
ASK = Ask("low", 100, 50)
BUSY = Demand(arriving_cost_per_s=10 * RATE)


def bounds_only() -> Policy:
    """The default classes, each refused by its bound alone."""
    policy = default_policy()
    classes = tuple(one.model_copy(update={"admit_on": "max_wait"}) for one in policy.classes)
    return policy.model_copy(update={"classes": classes})


def with_class(policy: Policy, class_id: str, **changes: Any) -> Policy:
    classes = tuple(one.model_copy(update=changes) if one.id == class_id else one for one in policy.classes)
    return policy.model_copy(update={"classes": classes})


def waiting(cost: float, num: int = 1) -> Demand:
    return Demand(num, cost)


def test_cost_counts_prompt_cached_and_expected_tokens_at_their_prices() -> None:
    assert request_cost(bounds_only(), Ask("low", 100, 50, 40)) == pytest.approx(
        60 * 1.0 + 40 * 0.1 + 50 * 2.0
    )


def test_a_request_is_taken_for_one_without_cached_tokens() -> None:
    assert request_cost(default_policy(), Ask("low", 100, 50)) == 100 * 1.0 + 50 * 2.0


def test_a_dearer_prompt_token_costs_more() -> None:
    policy = with_rules(default_policy(), fairness={"prompt_token_cost": 3.0})
    assert request_cost(policy, Ask("low", 100, 50)) == 100 * 3.0 + 50 * 2.0


def test_a_full_worker_serves_so_many_cost_tokens_a_second() -> None:
    """4 rows of 100 + 50 tokens. A step of 4 rows takes 10 + 4 ms, a prompt 100 ms: a request takes
    0.1 + 50 · 0.014 / 4 = 0.275 s of the worker and costs 100 + 2 · 50 = 200."""
    model = CostModel({"base_s": 0.01, "decode_row_s": 0.001, "prefill_token_s": 0.001})
    worker = WorkerCapacity(4, 100_000, model)
    assert worker_rate(bounds_only(), worker, 100, 50) == pytest.approx(200 / 0.275)


def test_memory_bounds_the_rows_of_a_full_worker() -> None:
    model = CostModel({"base_s": 0.01})
    policy = bounds_only()
    assert worker_rate(policy, WorkerCapacity(64, 250, model), 100, 50) == pytest.approx(
        200 / (50 * 0.01 / 2)
    )


def test_a_row_holds_its_prompt_and_half_its_answer_on_average() -> None:
    """960 tokens hold seven rows of 125."""
    worker = WorkerCapacity(64, 960, CostModel({"base_s": 0.01}))
    assert worker_rate(default_policy(), worker, 100, 50) == pytest.approx(200 / (50 * 0.01 / 7))


def test_a_worker_with_little_memory_still_runs_one_row() -> None:
    worker = WorkerCapacity(64, 10, CostModel({"base_s": 0.01}))
    assert worker_rate(default_policy(), worker, 100, 50) == pytest.approx(200 / (50 * 0.01))


def test_requests_of_less_than_a_token_are_counted_as_one() -> None:
    worker = WorkerCapacity(64, 3, CostModel({"base_s": 0.01}))
    assert worker_rate(default_policy(), worker, 0.5, 0.5) == pytest.approx(1.5 / (0.5 * 0.01 / 3))


def test_the_context_that_full_steps_read_takes_its_time() -> None:
    """Four rows of 125 tokens at 1 µs each: half a millisecond a step."""
    worker = WorkerCapacity(4, 100_000, CostModel({"base_s": 0.01, "kv_token_s": 1e-6}))
    assert worker_rate(default_policy(), worker, 100, 50) == pytest.approx(200 / (50 * 0.0105 / 4))


def test_a_prompt_token_attends_to_half_the_prompt_on_average() -> None:
    worker = WorkerCapacity(1, 100_000, CostModel({"prefill_token_s": 0.001, "attention_pair_s": 1e-5, "base_s": 0.01}))
    assert worker_rate(default_policy(), worker, 100, 50) == pytest.approx(200 / (100 * 0.0015 + 50 * 0.01))


def test_prices_weigh_what_a_worker_serves() -> None:
    policy = with_rules(default_policy(), fairness={"prompt_token_cost": 4.0, "output_token_cost": 3.0})
    worker = WorkerCapacity(1, 100_000, CostModel({"base_s": 0.01}))
    assert worker_rate(policy, worker, 100, 50) == pytest.approx((100 * 4 + 50 * 3) / (50 * 0.01))


def test_the_policys_slots_bound_the_rows() -> None:
    model = CostModel({"base_s": 0.01})
    policy = with_rules(bounds_only(), batch_limit={"max_slots": 8})
    assert worker_rate(policy, WorkerCapacity(64, 1 << 20, model), 100, 50) == pytest.approx(
        200 / (50 * 0.01 / 8)
    )


def test_the_pool_promises_all_workers_less_the_margin() -> None:
    worker = WorkerCapacity(4, 100_000, CostModel({"base_s": 0.01}))
    one = worker_rate(bounds_only(), worker, 100, 50)
    assert pool_rate(bounds_only(), [worker, worker], 100, 50) == pytest.approx(2 * one * 0.75)


def test_everybody_busy_means_the_guaranteed_share() -> None:
    result = shares(bounds_only(), dict.fromkeys(("high", "medium", "low"), BUSY), RATE)
    assert result == pytest.approx({"high": 0.7, "medium": 0.2, "low": 0.1})


def test_idle_classes_leave_their_shares() -> None:
    assert shares(bounds_only(), {"low": BUSY}, RATE)["low"] == pytest.approx(1.0)


def test_what_is_left_goes_to_the_most_urgent_first() -> None:
    """High needs nothing and leaves 0.7; medium needs all of it, so that low keeps its own."""
    result = shares(bounds_only(), {"medium": BUSY, "low": BUSY}, RATE)
    assert result == pytest.approx({"high": 0.7, "medium": 0.9, "low": 0.1})


def test_a_modest_class_leaves_what_it_does_not_need() -> None:
    """Medium needs 0.5 of the rate: 0.3 beyond its own. High leaves 0.7, so that low gets 0.1 + 0.4."""
    demands = {"medium": Demand(arriving_cost_per_s=0.5 * RATE), "low": BUSY}
    assert shares(bounds_only(), demands, RATE)["low"] == pytest.approx(0.1 + 0.7 - 0.3)


def test_an_empty_queue_starts_at_once() -> None:
    assert predict_start(bounds_only(), ASK, {}, RATE) == 0.0


def test_the_wait_is_the_work_ahead_over_the_share() -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(500.0)}
    assert predict_start(bounds_only(), ASK, demands, RATE) == pytest.approx(500.0 / (0.1 * RATE))


@pytest.mark.parametrize(("cost", "admitted"), [(2999.0, True), (3001.0, False)])
def test_a_wait_beyond_the_bound_is_refused(cost: float, admitted: bool) -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(cost)}
    assert isinstance(decide(bounds_only(), ASK, demands, RATE, 0.0), Admitted) is admitted


def test_a_refusal_says_after_which_time_it_would_be_accepted() -> None:
    """4,000 tokens wait at 100 a second: 40 s, 10 s beyond the bound of 30 s."""
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(4000.0)}
    answer = decide(bounds_only(), ASK, demands, RATE, 0.0)
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.PREDICTED_WAIT
    assert answer.retry_after_s == pytest.approx(10.0)
    served = {**demands, "low": waiting(4000.0 - answer.retry_after_s * 0.1 * RATE)}
    assert isinstance(decide(bounds_only(), ASK, served, RATE, 0.0), Admitted)


def test_a_class_that_admits_on_ttft_counts_the_prompt_too() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(30.0)}
    assert isinstance(decide(policy, ASK, demands, RATE, prefill_s=0.19), Admitted)
    refused = decide(policy, ASK, demands, RATE, prefill_s=0.21)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.PREDICTED_TTFT


def test_a_prompt_longer_than_the_objective_is_still_served_when_nobody_waits() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    assert isinstance(decide(policy, ASK, {}, RATE, prefill_s=2.0), Admitted)


def test_an_admitted_request_is_told_its_wait_and_first_token() -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0)}
    assert decide(bounds_only(), ASK, demands, RATE, 0.2) == Admitted(pytest.approx(1.0), pytest.approx(1.2))


def test_a_full_queue_refuses_whatever_the_prediction() -> None:
    policy = with_class(bounds_only(), "low", queue_limit=10)
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0, num=10)}
    answer = decide(policy, ASK, demands, RATE, 0.0)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.retry_after_s) == (Reason.QUEUE_FULL, pytest.approx(1.0 / 10))


def test_a_queue_that_is_too_long_by_three_has_room_after_three_have_started() -> None:
    policy = with_class(default_policy(), "low", queue_limit=10)
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(1200.0, num=12)}
    answer = decide(policy, ASK, demands, RATE, 0.0)
    assert isinstance(answer, Refused)
    assert answer.retry_after_s == pytest.approx(12.0 * 3 / 12)
    assert answer.numbers == {"num_waiting": 12, "queue_limit": 10}


def test_below_the_limit_of_its_queue_a_request_enters() -> None:
    policy = with_class(default_policy(), "low", queue_limit=1)
    assert isinstance(decide(policy, ASK, {}, RATE, 0.0), Admitted)


def test_a_refusal_has_the_numbers_that_decided_it() -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(4000.0, num=7)}
    answer = decide(bounds_only(), ASK, demands, RATE, 0.3)
    assert isinstance(answer, Refused)
    assert answer.numbers == {
        "predicted_s": pytest.approx(40.0),
        "bound_s": 30.0,
        "num_waiting": 7,
        "prefill_s": 0.3,
    }


def test_where_the_prompt_alone_is_too_long_the_whole_wait_is_too_much() -> None:
    policy = with_class(default_policy(), "low", admit_on="ttft")
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0)}
    answer = decide(policy, ASK, demands, RATE, prefill_s=2.0)
    assert isinstance(answer, Refused)
    assert answer.retry_after_s == pytest.approx(1.0)


def test_a_class_that_admits_on_ttft_needs_what_waits_within_that_objective() -> None:
    """Medium needs 60 tokens in 0.3 s, 0.2 of the rate: nothing beyond its own, so that low gets what high leaves."""
    policy = with_class(default_policy(), "medium", admit_on="ttft")
    demands = {"medium": waiting(60.0), "low": BUSY}
    assert shares(policy, demands, RATE)["low"] == pytest.approx(0.1 + 0.7)


def test_a_slow_pool_still_leaves_what_nobody_needs() -> None:
    assert shares(default_policy(), {}, 0.5)["low"] == pytest.approx(1.0)


def test_without_any_rate_every_class_needs_all_of_it() -> None:
    assert shares(default_policy(), {}, 0.0) == pytest.approx({"high": 0.7, "medium": 0.2, "low": 0.1})


def test_switched_off_it_refuses_only_for_the_queue_limit() -> None:
    policy = with_rules(bounds_only(), admission={"enabled": False})
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(1e6)}
    assert decide(policy, ASK, demands, RATE, 0.5) == Admitted(pytest.approx(1e4), pytest.approx(1e4 + 0.5))


def test_the_wait_factor_stretches_the_bound() -> None:
    policy = with_rules(bounds_only(), admission={"wait_factor": 2.0})
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(5900.0)}
    assert isinstance(decide(policy, ASK, demands, RATE, 0.0), Admitted)


def test_the_wait_factor_stretches_the_ttft_objective_too() -> None:
    """Twice 0.5 s, less 0.2 s for the prompt: 80 tokens at 100 a second are just in time, 81 are not."""
    policy = with_class(with_rules(default_policy(), admission={"wait_factor": 2.0}), "low", admit_on="ttft")
    answers = [
        decide(policy, ASK, {"high": BUSY, "medium": BUSY, "low": waiting(cost)}, RATE, prefill_s=0.2)
        for cost in (79.9, 81.0)
    ]
    assert [isinstance(one, Admitted) for one in answers] == [True, False]


def test_the_least_urgent_is_refused_first() -> None:
    """The same backlog in medium and low, high idle: what high leaves goes to medium."""
    demands = {"medium": waiting(25_000.0), "low": waiting(25_000.0)}
    policy = bounds_only()
    assert isinstance(decide(policy, Ask("medium", 100, 50), demands, RATE, 0.0), Admitted)
    assert isinstance(decide(policy, Ask("low", 100, 50), demands, RATE, 0.0), Refused)


def test_no_rate_at_all_refuses_what_would_have_to_wait() -> None:
    assert isinstance(decide(bounds_only(), ASK, {"low": waiting(1.0)}, 0.0, 0.0), Refused)


BEYOND = Demand(num_waiting=1, waiting_cost=20.0, arriving_cost_per_s=2 * 0.1 * RATE)


def test_beyond_its_share_a_class_waits_for_what_is_more_urgent_and_needs_room_for_itself() -> None:
    """20 of low, 30 of medium and 50 of high are ahead; the request brings 100 + 2 · 50, at 100 a second."""
    demands = {"high": Demand(1, 50.0, 10 * RATE), "medium": Demand(1, 30.0, 10 * RATE), "low": BEYOND}
    assert predict_start(bounds_only(), ASK, demands, RATE) == pytest.approx((20 + 30 + 50 + 200) / 100)


def test_within_its_share_a_class_waits_for_its_own_work_alone() -> None:
    demands = {"high": Demand(1, 50.0, 10 * RATE), "medium": BUSY, "low": waiting(20.0)}
    assert predict_start(bounds_only(), ASK, demands, RATE) == pytest.approx(0.2)


def test_the_more_is_asked_for_the_larger_a_request_counts() -> None:
    """Four times what the class can count on is asked for: the request's 200 count as 800."""
    low = Demand(1, 20.0, 2 * 0.1 * RATE, offered_cost_per_s=400.0)
    demands = {"high": BUSY, "medium": BUSY, "low": low}
    assert predict_start(bounds_only(), ASK, demands, RATE) == pytest.approx((20 + 800) / 100)


def test_a_class_beyond_its_share_is_let_in_at_once_when_nobody_waits() -> None:
    idle = Demand(arriving_cost_per_s=RATE, offered_cost_per_s=RATE)
    assert predict_start(bounds_only(), ASK, {"low": idle}, RATE) == 0.0


def test_a_short_request_is_accepted_where_a_long_one_is_refused() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    demands = {"high": BUSY, "medium": BUSY, "low": BEYOND}
    assert isinstance(decide(policy, Ask("low", 10, 5), demands, RATE, 0.0), Admitted)
    assert isinstance(decide(policy, Ask("low", 100, 50), demands, RATE, 0.0), Refused)


MEAN = MeanRequest(100, 50, 100)
WORKER = WorkerCapacity(4, 100_000, CostModel({"base_s": 0.01}))


def test_a_bound_reckons_with_long_answers_and_the_whole_margin() -> None:
    """Twice the steps for the same work: half the rate, less a quarter."""
    rules = bounds_only().find("low")
    at_the_mean = worker_rate(bounds_only(), WORKER, 100, 50)
    assert rate_for(bounds_only(), rules, [WORKER], MEAN) == pytest.approx(0.5 * 0.75 * at_the_mean)


def test_an_objective_reckons_with_the_mean_and_a_part_of_the_margin() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    at_the_mean = worker_rate(policy, WORKER, 100, 50)
    assert rate_for(policy, policy.find("low"), [WORKER], MEAN) == pytest.approx(0.9 * at_the_mean)


loads = st.fixed_dictionaries(
    {
        name: st.builds(Demand, st.integers(0, 50), st.floats(0, 1e5), st.floats(0, 5e3))
        for name in ("high", "medium", "low")
    }
)


@given(loads, st.floats(1.0, 1e5))
def test_a_class_can_always_count_on_its_guaranteed_share(demands: dict[str, Demand], rate: float) -> None:
    result = shares(bounds_only(), demands, rate)
    assert all(
        result[name] >= share - 1e-9 for name, share in {"high": 0.7, "medium": 0.2, "low": 0.1}.items()
    )


@given(loads, st.floats(1.0, 1e5))
def test_within_its_guaranteed_share_nobody_is_refused(demands: dict[str, Demand], rate: float) -> None:
    policy = bounds_only()
    within = Demand(1, 0.1 * rate * 30.0 * 0.999)
    assert isinstance(decide(policy, ASK, {**demands, "low": within}, rate, 0.0), Admitted)


def test_the_rate_follows_the_cost_model() -> None:
    fast, slow = (WorkerCapacity(8, 1 << 20, CostModel({"base_s": seconds})) for seconds in (0.01, 0.02))
    policy = bounds_only()
    assert worker_rate(policy, fast, 100, 50) == pytest.approx(2 * worker_rate(policy, slow, 100, 50))
    assert fast.cost_model.predict(StepShape(8)) == pytest.approx(0.01)
