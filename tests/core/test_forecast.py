"""What a door reckons with: how much arrives, how long answers become, how fast the pool is."""

from __future__ import annotations

import pytest

from scheduler_worker.core.admission import Admitted, Ask, Refused, WorkerCapacity
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.forecast import ArrivalRate, Forecast, Waiting
from scheduler_worker.core.policy import Policy, default_policy

ASK = Ask("low", 100, 50)
WORKER = WorkerCapacity(8, 100_000, CostModel({"base_s": 0.01}))


def steady(cost: float, every_s: float, until: float) -> ArrivalRate:
    rate = ArrivalRate()
    for number in range(round(until / every_s) + 1):
        rate.add(cost, number * every_s)
    return rate


def wait_of(
    forecast: Forecast, load: dict[str, Waiting], now: float, policy: Policy | None = None, num_doors: int = 1
) -> float:
    answer = forecast.decide(policy or default_policy(), ASK, load, [WORKER], num_doors, now)
    return answer.wait_s if isinstance(answer, Admitted) else float(answer.numbers["predicted_s"])


@pytest.mark.parametrize("until", [2.0, 20.0, 100.0])
def test_steady_arrivals_are_their_rate_from_the_first_seconds_on(until: float) -> None:
    assert steady(10.0, 0.01, until).value(until) == pytest.approx(1000.0, rel=0.02)


def test_nothing_has_arrived_at_no_rate() -> None:
    rate = ArrivalRate()
    assert (rate.value(5.0), rate.lasting(5.0)) == (0.0, 0.0)


def test_a_burst_counts_at_once() -> None:
    rate = steady(1.0, 1.0, 100.0)
    rate.add(500.0, 100.5)
    assert rate.value(100.5) > 500.0


def test_what_lasts_is_not_moved_far_by_a_burst() -> None:
    rate = steady(1.0, 1.0, 100.0)
    rate.add(500.0, 100.5)
    assert rate.lasting(100.5) < 60.0


def test_between_two_bursts_the_last_one_is_remembered() -> None:
    rate = ArrivalRate()
    rate.add(1000.0, 0.0)
    assert rate.value(5.0) == pytest.approx(rate.lasting(5.0))
    assert rate.value(5.0) > 100.0


def test_answers_are_expected_as_long_as_the_last_ones() -> None:
    forecast = Forecast()
    for _ in range(18):
        forecast.ended("low", 40)
    for _ in range(2):
        forecast.ended("low", 200)
    ask = forecast.ask("low", 100, 1000)
    assert (ask.num_output_tokens, ask.num_long_tokens) == (56, 40)


def test_no_answer_is_expected_to_be_longer_than_asked_for() -> None:
    ask = Forecast().ask("low", 100, 7)
    assert (ask.num_output_tokens, ask.num_long_tokens) == (7, 7)


def test_requests_of_a_retired_class_wait_in_the_class_that_serves_it() -> None:
    policy = default_policy().model_copy(update={"retired": {"batch": "low"}})
    load = {"batch": Waiting(1, 300.0), "low": Waiting(1, 200.0)}
    assert wait_of(Forecast(), load, 0.0, policy) == pytest.approx(
        wait_of(Forecast(), {"low": Waiting(2, 500.0)}, 0.0, policy)
    )


def test_requests_of_a_class_that_never_was_one_are_not_counted() -> None:
    assert wait_of(Forecast(), {"unknown": Waiting(9, 1e9)}, 0.0) == 0.0


def test_other_doors_see_as_much_as_this_one() -> None:
    """High takes more of the pool the more of it arrives: a low request waits longer."""
    forecast = Forecast()
    for number in range(100):
        forecast.accepted(Ask("high", 100, 50), 60.0, number * 0.1)
    load = {"low": Waiting(5, 1000.0)}
    assert wait_of(forecast, load, 10.0, num_doors=4) > wait_of(forecast, load, 10.0, num_doors=1)


def test_larger_requests_take_the_pool_longer_per_token_of_answer() -> None:
    """What was accepted last decides how fast the pool is taken to be."""
    short, long = Forecast(), Forecast()
    for number in range(100):
        short.accepted(Ask("low", 1000, 10), 1.0, number * 0.1)
        long.accepted(Ask("low", 10, 1000), 1.0, number * 0.1)
    load = {"low": Waiting(5, 1000.0)}
    assert wait_of(long, load, 1000.0) > wait_of(short, load, 1000.0)


def test_without_workers_nobody_may_wait() -> None:
    answer = Forecast().decide(default_policy(), ASK, {"low": Waiting(1, 100.0)}, [], 1, 0.0)
    assert isinstance(answer, Refused)
