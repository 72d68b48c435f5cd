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
    Supply,
    WorkerCapacity,
    bound_s,
    decide,
    pool_rate,
    predict_start,
    rate_for,
    repeats,
    request_cost,
    supply_for,
    worker_rate,
    worker_rows,
)
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Reason, StepShape
from scheduler_worker.core.policy import Policy, default_policy
from tests.core.worlds import with_rules

RATE = 1000.0  # cost tokens per second
POOL = Supply(RATE)
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


def start(demands: dict[str, Demand], class_id: str = "low", policy: Policy | None = None) -> float:
    """Seconds until a request of 100 + 50 tokens would start."""
    return predict_start(policy or bounds_only(), Ask(class_id, 100, 50), demands, POOL)


@pytest.mark.parametrize(("class_id", "per_s"), [("high", 700.0), ("medium", 200.0), ("low", 100.0)])
def test_everybody_busy_means_the_guaranteed_share(class_id: str, per_s: float) -> None:
    demands = {**dict.fromkeys(("high", "medium", "low"), BUSY), class_id: waiting(500.0)}
    assert start(demands, class_id) == pytest.approx(500.0 / per_s)


def test_idle_classes_leave_their_shares() -> None:
    assert start({"low": waiting(500.0)}) == pytest.approx(500.0 / RATE)


def test_what_more_urgent_classes_have_is_served_before() -> None:
    """500 + 300 + 200 wait, in order of urgency; the last of low starts when the pool has served all of it."""
    demands = {"high": waiting(500.0), "medium": waiting(300.0), "low": waiting(200.0)}
    assert start(demands) == pytest.approx(1000.0 / RATE)


def test_what_keeps_arriving_in_more_urgent_classes_is_served_before_too() -> None:
    """400 of 1,000 a second go to high, 300 to medium; low has what is left."""
    demands = {"high": Demand(0, 0.0, 400.0), "medium": Demand(0, 0.0, 300.0), "low": waiting(600.0)}
    assert start(demands) == pytest.approx(600.0 / (1000.0 - 400.0 - 300.0))


def test_less_urgent_classes_take_their_guaranteed_share_while_they_have_work() -> None:
    """Low has work for long: a tenth is its own."""
    assert start({"medium": waiting(900.0), "low": waiting(5000.0)}, "medium") == pytest.approx(900.0 / 900.0)


def test_less_urgent_classes_take_what_arrives_once_their_work_is_done() -> None:
    """Low's 90 are done after 1 s, because 10 a second arrive of the 100 it may take: from then on it takes 10. In T
    seconds medium has 900 + 990 (T − 1): 1,890 tokens take 2 s."""
    demands = {"medium": waiting(1890.0), "low": Demand(1, 90.0, 10.0)}
    assert start(demands, "medium") == pytest.approx(2.0)


def test_a_less_urgent_class_is_sated_when_its_share_has_served_what_waits_and_arrives() -> None:
    """Low is done after 1 s; medium's 850 have been served before, at 900 a second."""
    assert start({"medium": waiting(850.0), "low": Demand(1, 90.0, 10.0)}, "medium") == pytest.approx(850 / 900)


def test_a_less_urgent_class_that_is_brought_its_share_takes_no_less() -> None:
    assert start({"medium": waiting(900.0), "low": Demand(1, 10.0, 100.0)}, "medium") == pytest.approx(1.0)


def test_a_less_urgent_class_that_is_brought_a_little_less_is_sated_late() -> None:
    """Low spares 0.5 of its 100 a second and is done after 20 s. Medium's 27,005 take 20 s at 900 a second, and 10 s
    at 900.5."""
    demands = {"medium": waiting(27_005.0), "low": Demand(1, 10.0, 99.5)}
    assert start(demands, "medium") == pytest.approx(30.0, rel=1e-9)


def test_two_less_urgent_classes_are_sated_one_after_the_other() -> None:
    """Low's 50 take 0.5 s of its 100 a second, medium's 300 take 1.5 s of its 200: high has 700 a second, then 800
    from 0.5 s on, then all. 350 + 800 + 500 are served after 2 s."""
    demands = {"high": waiting(1650.0), "medium": waiting(300.0), "low": waiting(50.0)}
    assert start(demands, "high") == pytest.approx(2.0)


def test_a_less_urgent_class_with_more_than_its_share_takes_no_more_than_that() -> None:
    demands = {"high": waiting(700.0), "medium": Demand(1, 10.0, 500.0), "low": Demand(1, 10.0, 500.0)}
    assert start(demands, "high") == pytest.approx(700.0 / 700.0)


def test_an_empty_queue_starts_at_once() -> None:
    assert predict_start(bounds_only(), ASK, {}, POOL) == 0.0


def test_the_wait_is_the_work_ahead_over_the_share() -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(500.0)}
    assert predict_start(bounds_only(), ASK, demands, POOL) == pytest.approx(500.0 / (0.1 * RATE))


@pytest.mark.parametrize(("cost", "admitted"), [(2999.0, True), (3001.0, False)])
def test_a_wait_beyond_the_bound_is_refused(cost: float, admitted: bool) -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(cost)}
    assert isinstance(decide(bounds_only(), ASK, demands, POOL, 0.0), Admitted) is admitted


USUAL = Demand(arriving_cost_per_s=10 * RATE, usual_cost_per_s=10 * RATE)


def refused(answer: Admitted | Refused) -> Refused:
    assert isinstance(answer, Refused)
    return answer


def test_a_refusal_says_after_which_time_it_would_be_accepted() -> None:
    """4,000 tokens wait at 100 a second: 40 s, 10 s beyond the bound of 30 s."""
    demands = {"high": USUAL, "medium": USUAL, "low": waiting(4000.0)}
    answer = refused(decide(bounds_only(), ASK, demands, POOL, 0.0))
    assert answer.reason is Reason.PREDICTED_WAIT
    assert answer.retry_after_s == pytest.approx(10.0)
    served = {**demands, "low": waiting(4000.0 - answer.retry_after_s * 0.1 * RATE)}
    assert isinstance(decide(bounds_only(), ASK, served, POOL, 0.0), Admitted)


def test_a_refusal_says_how_long_the_next_one_waits_for_the_request() -> None:
    """100 + 2 · 50 tokens at 100 a second."""
    demands = {"high": USUAL, "medium": USUAL, "low": waiting(4000.0)}
    assert refused(decide(bounds_only(), ASK, demands, POOL, 0.0)).takes_s == pytest.approx(2.0)


def test_in_a_burst_the_time_to_come_back_counts_what_is_expected_of_it_twice() -> None:
    """20,000 of high and 15,000 of low wait, and high brings 500 a second: 70 s. It may bring 200 a second more than
    usual for 30 s, which are 6 s of the pool, and count as 12: what would be 70 − 30 s becomes 70 − (30 − 12)."""
    demands = {"high": Demand(1, 20_000.0, 500.0, 500.0, 500.0, 200.0), "low": waiting(15_000.0)}
    answer = refused(decide(bounds_only(), ASK, demands, POOL, 0.0))
    assert answer.retry_after_s == pytest.approx(70.0 - (30.0 - 12.0))


@pytest.mark.parametrize(("admit_on", "retry_after_s"), [("max_wait", 35.0), ("ttft", 29_000 / 900 - 0.3)])
def test_who_is_refused_by_a_bound_comes_back_when_all_who_wait_have_started(
    admit_on: str, retry_after_s: float
) -> None:
    """31 of medium and 4 of low, which come after it, of 1,000 each, half of four of them in free rows: 33 s, and 2 s
    until those who run are halfway through. By an objective of 0.3 s, for which they do not count, medium comes back
    when the 900 a second that low leaves will have served its own in that time."""
    policy = with_class(bounds_only(), "medium", admit_on=admit_on)
    demands = {"medium": waiting(31_000.0, 31), "low": waiting(4_000.0, 4)}
    supply = Supply(RATE, 4, lag_s=2.0 if admit_on == "max_wait" else 0.0)
    answer = refused(decide(policy, Ask("medium", 100, 50), demands, supply, 0.0))
    assert answer.retry_after_s == pytest.approx(retry_after_s)


@pytest.mark.parametrize(("burst_per_s", "predicted_s"), [(200.0, 41.0), (1000.0, 65.0), (0.0, 35.0)])
def test_who_is_refused_is_told_no_more_of_a_burst_than_is_expected(burst_per_s: float, predicted_s: float) -> None:
    """35,000 tokens wait, and high may bring as much more per second for 30 s: it would not go on for ever."""
    high = Demand(1, 20_000.0, arriving_cost_per_s=950.0, burst_cost_per_s=burst_per_s)
    answer = refused(decide(bounds_only(), ASK, {"high": high, "low": waiting(15_000.0)}, POOL, 0.0))
    assert answer.numbers["predicted_s"] == pytest.approx(predicted_s)


def test_who_is_refused_is_told_a_wait_beyond_the_bound() -> None:
    """10,000 tokens wait; the 200 a second that high leaves would serve them in 50 s, the pool alone in 10."""
    high = Demand(arriving_cost_per_s=800.0)
    answer = refused(decide(bounds_only(), ASK, {"high": high, "low": waiting(10_000.0)}, POOL, 0.0))
    assert answer.numbers["predicted_s"] == pytest.approx(30.0)


def test_nobody_is_told_to_wait_longer_than_until_all_that_waits_has_started() -> None:
    demands = {"high": Demand(1, 20_000.0, burst_cost_per_s=900.0), "low": waiting(15_000.0)}
    assert refused(decide(bounds_only(), ASK, demands, POOL, 0.0)).retry_after_s == pytest.approx(35.0)


def test_a_class_that_admits_on_ttft_counts_the_prompt_too() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(30.0)}
    assert isinstance(decide(policy, ASK, demands, POOL, prefill_s=0.19), Admitted)
    refused = decide(policy, ASK, demands, POOL, prefill_s=0.21)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.PREDICTED_TTFT


def test_a_prompt_longer_than_the_objective_is_still_served_when_nobody_waits() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    assert isinstance(decide(policy, ASK, {}, POOL, prefill_s=2.0), Admitted)


def test_an_admitted_request_is_told_its_wait_and_first_token() -> None:
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0)}
    assert decide(bounds_only(), ASK, demands, POOL, 0.2) == Admitted(pytest.approx(1.0), pytest.approx(1.2))


def test_a_full_queue_refuses_whatever_the_prediction() -> None:
    policy = with_class(bounds_only(), "low", queue_limit=10)
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0, num=10)}
    answer = decide(policy, ASK, demands, POOL, 0.0)
    assert isinstance(answer, Refused)
    assert (answer.reason, answer.retry_after_s) == (Reason.QUEUE_FULL, pytest.approx(1.0 / 10))


def test_a_queue_that_is_too_long_by_three_has_room_after_three_have_started() -> None:
    policy = with_class(default_policy(), "low", queue_limit=10)
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(1200.0, num=12)}
    answer = decide(policy, ASK, demands, POOL, 0.0)
    assert isinstance(answer, Refused)
    assert answer.retry_after_s == pytest.approx(12.0 * 3 / 12)
    assert answer.numbers == {"num_waiting": 12, "queue_limit": 10}


def test_a_queue_of_one_has_room_once_that_one_has_started() -> None:
    policy = with_class(default_policy(), "low", queue_limit=1)
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(100.0)}
    assert refused(decide(policy, ASK, demands, POOL, 0.0)).retry_after_s == pytest.approx(1.0)


def test_a_time_to_come_back_may_be_shorter_than_a_second() -> None:
    """70 tokens take 0.7 s, for an objective of 0.5."""
    demands = {"high": USUAL, "medium": USUAL, "low": waiting(70.0)}
    assert refused(decide(default_policy(), ASK, demands, POOL, 0.0)).retry_after_s == pytest.approx(0.2)


def test_below_the_limit_of_its_queue_a_request_enters() -> None:
    policy = with_class(default_policy(), "low", queue_limit=1)
    assert isinstance(decide(policy, ASK, {}, POOL, 0.0), Admitted)


def test_a_refusal_has_the_numbers_that_decided_it() -> None:
    demands = {"high": USUAL, "medium": USUAL, "low": waiting(4000.0, num=7)}
    answer = decide(bounds_only(), ASK, demands, POOL, 0.3)
    assert isinstance(answer, Refused)
    assert answer.numbers == {
        "predicted_s": pytest.approx(40.0),
        "bound_s": 30.0,
        "num_waiting": 7,
        "prefill_s": 0.3,
    }


def test_where_the_prompt_alone_is_too_long_the_whole_wait_is_too_much() -> None:
    policy = with_class(default_policy(), "low", admit_on="ttft")
    demands = {"high": USUAL, "medium": USUAL, "low": waiting(100.0)}
    answer = decide(policy, ASK, demands, POOL, prefill_s=2.0)
    assert refused(answer).retry_after_s == pytest.approx(1.0)


def test_what_a_class_is_admitted_by_is_its_bound_or_its_objective() -> None:
    assert [bound_s(one) for one in default_policy().classes] == [30.0, 30.0, 0.5]


def test_a_promise_reckons_with_a_burst_that_comes_once_more_and_an_objective_does_not() -> None:
    assert [repeats(one) for one in default_policy().classes] == [1.0, 1.0, 0.0]


def test_switched_off_it_refuses_only_for_the_queue_limit() -> None:
    policy = with_rules(bounds_only(), admission={"enabled": False})
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(1e6)}
    assert decide(policy, ASK, demands, POOL, 0.5) == Admitted(pytest.approx(1e4), pytest.approx(1e4 + 0.5))


def test_the_wait_factor_stretches_the_bound() -> None:
    policy = with_rules(bounds_only(), admission={"wait_factor": 2.0})
    demands = {"high": BUSY, "medium": BUSY, "low": waiting(5900.0)}
    assert isinstance(decide(policy, ASK, demands, POOL, 0.0), Admitted)


def test_the_wait_factor_stretches_the_ttft_objective_too() -> None:
    """Twice 0.5 s, less 0.2 s for the prompt: 80 tokens at 100 a second are just in time, 81 are not."""
    policy = with_class(with_rules(default_policy(), admission={"wait_factor": 2.0}), "low", admit_on="ttft")
    answers = [
        decide(policy, ASK, {"high": BUSY, "medium": BUSY, "low": waiting(cost)}, POOL, prefill_s=0.2)
        for cost in (79.9, 81.0)
    ]
    assert [isinstance(one, Admitted) for one in answers] == [True, False]


def test_the_least_urgent_is_refused_first() -> None:
    """The same backlog in medium and low, high idle: medium's takes 20 s and a little, low's comes after it."""
    demands = {"medium": waiting(20_000.0), "low": waiting(20_000.0)}
    policy = bounds_only()
    assert isinstance(decide(policy, Ask("medium", 100, 50), demands, POOL, 0.0), Admitted)
    assert isinstance(decide(policy, Ask("low", 100, 50), demands, POOL, 0.0), Refused)


def test_no_rate_at_all_refuses_what_would_have_to_wait() -> None:
    assert isinstance(decide(bounds_only(), ASK, {"low": waiting(1.0)}, Supply(0.0), 0.0), Refused)


BEYOND = Demand(num_waiting=1, waiting_cost=20.0, arriving_cost_per_s=2 * 0.1 * RATE)


def test_beyond_its_share_a_class_waits_for_what_is_more_urgent_and_needs_room_for_itself() -> None:
    """20 of low, 30 of medium and 50 of high are ahead; the request brings 100 + 2 · 50, at 100 a second."""
    demands = {"high": Demand(1, 50.0, 10 * RATE), "medium": Demand(1, 30.0, 10 * RATE), "low": BEYOND}
    assert start(demands) == pytest.approx((20 + 30 + 50 + 200) / 100)


def test_beyond_its_share_a_class_still_has_what_others_leave() -> None:
    """20 of low, 50 of high and the request's 200, at the 600 a second that high leaves."""
    assert start({"high": Demand(1, 50.0, 400.0), "low": BEYOND}) == pytest.approx((20 + 50 + 200) / 600)


def test_a_class_that_takes_just_its_share_is_within_it() -> None:
    low = Demand(1, 20.0, 0.1 * RATE)
    assert start({"high": BUSY, "medium": BUSY, "low": low}) == pytest.approx(0.2)


def test_within_its_share_a_class_waits_for_its_own_work_alone() -> None:
    demands = {"high": Demand(1, 50.0, 10 * RATE), "medium": BUSY, "low": waiting(20.0)}
    assert start(demands) == pytest.approx(0.2)


def test_the_more_is_asked_for_the_larger_a_request_counts() -> None:
    """Four times what the class can count on is asked for: the request's 200 count as 800."""
    low = Demand(1, 20.0, 2 * 0.1 * RATE, offered_cost_per_s=400.0)
    assert start({"high": BUSY, "medium": BUSY, "low": low}) == pytest.approx((20 + 800) / 100)


def test_what_can_be_served_is_what_more_urgent_classes_leave_in_the_long_run() -> None:
    """High takes 400 of 1,000 a second; 1,200 are asked of the 600 that are left: the request's 200 count as 400."""
    low = Demand(1, 20.0, 2 * 0.1 * RATE, offered_cost_per_s=1200.0)
    assert start({"high": Demand(0, 0.0, 400.0), "low": low}) == pytest.approx((20 + 400) / 600)


def test_what_can_be_served_is_less_by_what_arrives_in_less_urgent_classes() -> None:
    """Low brings 50 a second of the 100 it may take: medium has 950, and twice that is asked of it."""
    medium = Demand(1, 750.0, 0.5 * RATE, offered_cost_per_s=1900.0)
    demands = {"medium": medium, "low": Demand(0, 0.0, 50.0)}
    assert start(demands, "medium") == pytest.approx((750 + 400) / 950)


def test_a_class_beyond_its_share_is_let_in_at_once_when_nobody_waits() -> None:
    assert start({"low": Demand(arriving_cost_per_s=RATE, offered_cost_per_s=RATE)}) == 0.0


def test_a_class_beyond_its_share_waits_for_more_urgent_ones_though_none_of_its_own_waits() -> None:
    """High's 50 and the request's 200."""
    demands = {"high": Demand(1, 50.0), "low": Demand(arriving_cost_per_s=2 * 0.1 * RATE)}
    assert start(demands) == pytest.approx(250 / RATE)


def test_a_short_request_is_accepted_where_a_long_one_is_refused() -> None:
    policy = with_class(bounds_only(), "low", admit_on="ttft")
    demands = {"high": BUSY, "medium": BUSY, "low": BEYOND}
    assert isinstance(decide(policy, Ask("low", 10, 5), demands, POOL, 0.0), Admitted)
    assert isinstance(decide(policy, Ask("low", 100, 50), demands, POOL, 0.0), Refused)


def in_rows(num_free_rows: int, prompt_share: float, demands: dict[str, Demand], class_id: str = "low") -> float:
    supply = Supply(RATE, num_free_rows, prompt_share)
    return predict_start(bounds_only(), Ask(class_id, 100, 50), demands, supply)


def test_where_rows_are_free_a_request_starts_as_soon_as_the_prompts_before_it_are_computed() -> None:
    """2 + 1 wait for four rows: a fourth finds one, after a quarter of the time that 600 + 300 tokens take."""
    demands = {"high": waiting(300.0, 1), "low": waiting(600.0, 2)}
    assert in_rows(4, 0.25, demands) == pytest.approx(0.25 * 900.0 / RATE)


@pytest.mark.parametrize(("num_free_rows", "wait_s"), [(4, 0.25 * 0.9), (0, 0.9 + 2.0)])
def test_who_finds_no_row_free_waits_until_those_who_run_are_halfway_through(num_free_rows: int, wait_s: float) -> None:
    demands = {"high": waiting(300.0, 1), "low": waiting(600.0, 2)}
    supply = Supply(RATE, num_free_rows, 0.25, lag_s=2.0)
    assert predict_start(bounds_only(), Ask("low", 100, 50), demands, supply) == pytest.approx(wait_s)


def test_who_finds_no_row_free_waits_for_those_before_it_less_half_a_request_for_each_free_row() -> None:
    """Three of 300 tokens wait for three rows: 900 − 0.5 · 3 · 300."""
    demands = {"high": waiting(300.0, 1), "low": waiting(600.0, 2)}
    assert in_rows(3, 0.25, demands) == pytest.approx((900.0 - 450.0) / RATE)


def test_who_finds_no_row_free_waits_for_the_prompts_at_least() -> None:
    demands = {"high": waiting(300.0, 1), "low": waiting(600.0, 2)}
    assert in_rows(3, 0.8, demands) == pytest.approx(0.8 * 900.0 / RATE)


def test_one_that_waits_for_the_only_free_row_is_halfway_done_when_the_next_comes() -> None:
    assert in_rows(1, 0.0, {"low": waiting(600.0, 1)}) == pytest.approx((600.0 - 300.0) / RATE)


def test_who_waits_for_less_than_is_credited_starts_at_once_though_others_leave_nothing() -> None:
    """Four wait with 800: half of their mean for one free row is all that waits in medium."""
    demands = {"high": Demand(arriving_cost_per_s=2 * RATE), "medium": waiting(100.0), "low": waiting(700.0, 3)}
    assert in_rows(1, 0.0, demands, "medium") == 0.0


def test_where_others_take_just_all_a_class_has_its_guaranteed_share() -> None:
    assert start({"high": Demand(arriving_cost_per_s=RATE), "low": waiting(50.0)}) == pytest.approx(50 / 100)


def test_little_that_others_leave_is_more_than_a_smaller_share() -> None:
    """Of 5 a second high takes 4.1: 0.9 are left, and low's share is 0.5."""
    demands = {"high": Demand(arriving_cost_per_s=4.1), "low": waiting(9.0)}
    assert predict_start(bounds_only(), ASK, demands, Supply(5.0)) == pytest.approx(9.0 / 0.9)


def test_less_urgent_requests_take_no_free_row_from_more_urgent_ones() -> None:
    """Two of high wait for three rows, whoever waits in low."""
    demands = {"high": waiting(600.0, 2), "low": waiting(9000.0, 30)}
    assert in_rows(3, 0.25, demands, "high") == pytest.approx(0.25 * 600.0 / RATE)


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


def supply(*workers: WorkerCapacity, num_running: int = 0) -> Supply:
    return supply_for(bounds_only(), bounds_only().find("low"), workers, MEAN, num_running)


def test_the_supply_has_the_rate_for_the_class() -> None:
    assert supply(WORKER).rate == rate_for(bounds_only(), bounds_only().find("low"), [WORKER], MEAN)


@pytest.mark.parametrize(("num_running", "num_free_rows"), [(0, 8), (5, 3), (8, 0), (9, 0)])
def test_rows_of_all_workers_are_free_that_nobody_uses(num_running: int, num_free_rows: int) -> None:
    assert supply(WORKER, WORKER, num_running=num_running).num_free_rows == num_free_rows


def test_memory_bounds_the_rows_that_can_be_free() -> None:
    """Rows of 125 tokens in 300."""
    assert worker_rows(bounds_only(), WorkerCapacity(4, 300, WORKER.cost_model), 100, 50) == 2


def test_a_prompts_share_of_a_request_is_that_of_the_worker_where_it_is_largest() -> None:
    """A prompt of 100 tokens takes 0.1 s; 50 output tokens take 50 · 0.01 / 4 = 0.125 s."""
    with_prompts = WorkerCapacity(4, 100_000, CostModel({"base_s": 0.01, "prefill_token_s": 0.001}))
    assert supply(WORKER, with_prompts).prompt_share == pytest.approx(0.1 / 0.225)


def test_without_workers_there_is_nothing() -> None:
    assert supply() == Supply(0.0, 0, 0.0)


loads = st.fixed_dictionaries(
    {
        name: st.builds(Demand, st.integers(0, 50), st.floats(0, 1e5), st.floats(0, 5e3), st.floats(0, 1e5))
        for name in ("high", "medium", "low")
    }
)


@given(loads, st.floats(1.0, 1e5), st.integers(0, 64), st.floats(0.0, 1.0))
def test_within_its_guaranteed_share_nobody_is_refused(
    demands: dict[str, Demand], rate: float, num_free_rows: int, prompt_share: float
) -> None:
    within = Demand(1, 0.1 * rate * 30.0 * 0.999)
    supply = Supply(rate, num_free_rows, prompt_share)
    assert isinstance(decide(bounds_only(), ASK, {**demands, "low": within}, supply, 0.0), Admitted)


def test_within_its_share_a_class_with_nobody_waiting_is_served_at_once() -> None:
    assert in_rows(9, 0.5, {"high": waiting(300.0, 1)}) == 0.0


def test_what_is_not_said_of_a_class_or_a_request_is_nothing() -> None:
    assert (Demand(), Supply(1.0)) == (Demand(0, 0.0, 0.0, 0.0, 0.0, 0.0), Supply(1.0, 0, 0.0))
    assert Ask("low", 1, 1) == Ask("low", 1, 1, 0, 0)


def test_a_request_that_is_refused_for_the_queues_length_takes_no_time() -> None:
    policy = with_class(default_policy(), "low", queue_limit=1)
    assert refused(decide(policy, ASK, {"low": waiting(1.0)}, POOL, 0.0)).takes_s == 0.0


@given(loads, st.floats(1.0, 1e5), st.sampled_from(("high", "medium", "low")), st.integers(0, 64))
def test_nobody_is_told_to_come_back_in_the_past(
    demands: dict[str, Demand], rate: float, class_id: str, num_free_rows: int
) -> None:
    answer = decide(bounds_only(), Ask(class_id, 100, 50), demands, Supply(rate, num_free_rows, 0.3), 0.0)
    assert isinstance(answer, Admitted) or (answer.retry_after_s >= 0.0 and answer.takes_s >= 0.0)


def test_the_rate_follows_the_cost_model() -> None:
    fast, slow = (WorkerCapacity(8, 1 << 20, CostModel({"base_s": seconds})) for seconds in (0.01, 0.02))
    policy = bounds_only()
    assert worker_rate(policy, fast, 100, 50) == pytest.approx(2 * worker_rate(policy, slow, 100, 50))
    assert fast.cost_model.predict(StepShape(8)) == pytest.approx(0.01)
