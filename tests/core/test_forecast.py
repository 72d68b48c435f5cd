"""What a door reckons with: how much arrives, how long answers become, how fast the pool is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler_worker.core.admission import (
    Admitted,
    Ask,
    MeanRequest,
    Refused,
    WorkerCapacity,
    request_cost,
    supply_for,
)
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.forecast import ArrivalRate, Forecast, Progress, Waiting
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
    assert (rate.value(5.0), rate.flow(5.0, 30.0, 1.0), rate.usual(5.0, 0.0)) == (0.0, 0.0, 0.0)


def test_a_burst_counts_at_once() -> None:
    rate = steady(1.0, 1.0, 100.0)
    rate.add(500.0, 100.5)
    assert rate.value(100.5) > 500.0


def test_between_two_bursts_the_last_one_is_remembered() -> None:
    rate = ArrivalRate()
    rate.add(1000.0, 0.0)
    assert rate.value(5.0) > 100.0


def opened_long_ago(*arrivals: tuple[float, float]) -> ArrivalRate:
    """A door that has been open for 600 s, and what arrived since: (at, cost)."""
    rate = ArrivalRate(-600.0)
    for at, cost in arrivals:
        rate.add(cost, at)
    return rate


@pytest.mark.parametrize("within_s", [0.5, 5.0, 30.0])
def test_a_flow_that_has_lasted_is_expected_to_go_on(within_s: float) -> None:
    """Half of five minutes' usual arrivals are more than 30 s bring."""
    assert steady(10.0, 0.01, 100.0).flow(100.0, within_s, 0.0) == pytest.approx(1000.0, rel=0.02)


@pytest.mark.parametrize("repeats", [0.0, 1.0, 2.0])
def test_a_burst_into_an_idle_pool_is_expected_as_often_as_asked_within_the_bound(repeats: float) -> None:
    rate = opened_long_ago((0.0, 3000.0))
    assert rate.flow(0.0, 30.0, repeats) == pytest.approx(repeats * 3000.0 / 30.0)


def test_what_arrived_in_the_first_seconds_may_be_a_flow() -> None:
    rate = ArrivalRate()
    rate.add(3000.0, 0.0)
    assert rate.flow(0.0, 30.0, 0.0) == rate.value(0.0)


@pytest.mark.parametrize(("at", "per_s"), [(9.9, 3000.0), (10.0, 3000.0 / 30.0)])
def test_after_ten_seconds_a_door_tells_a_burst_from_a_flow(at: float, per_s: float) -> None:
    rate = ArrivalRate(0.0)
    rate.add(3000.0, at)
    assert rate.flow(at, 30.0, 1.0) == pytest.approx(per_s, rel=0.01)


def test_a_flow_that_jumps_fivefold_is_foreseen_in_full() -> None:
    """Ten a second for 600 s, then fifty a second for 2 s; five minutes' usual arrivals are ten a second."""
    usual = [(number - 600.0, 10.0) for number in range(600)]
    rate = opened_long_ago(*usual, *((number / 50.0, 1.0) for number in range(100)))
    assert rate.flow(2.0, 30.0, 1.0) == pytest.approx(rate.value(2.0))


def test_a_flow_that_jumps_further_is_foreseen_up_to_half_of_five_usual_minutes() -> None:
    """Twenty times the usual ten a second: in 30 s, half of the 3,000 of five minutes."""
    usual = [(number - 600.0, 10.0) for number in range(600)]
    rate = opened_long_ago(*usual, *((number / 200.0, 1.0) for number in range(400)))
    assert rate.flow(2.0, 30.0, 1.0) == pytest.approx(0.5 * 3000.0 / 30.0, rel=0.05)


def test_what_is_usual_leaves_out_the_last_seconds() -> None:
    usual = [(number - 600.0, 10.0) for number in range(600)]
    rate = opened_long_ago(*usual, (0.0, 3000.0))
    assert rate.usual(0.0, 1e9) == pytest.approx(10.0, rel=0.02)


def test_no_more_is_usual_than_what_arrives() -> None:
    assert steady(10.0, 0.01, 100.0).usual(100.0, 30.0) == 30.0


def test_at_first_all_is_usual() -> None:
    assert ArrivalRate().usual(5.0, 40.0) == 40.0


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
    load = {"low": Waiting(50, 10_000.0)}
    assert wait_of(forecast, load, 10.0, num_doors=4) > wait_of(forecast, load, 10.0, num_doors=1)


def test_larger_requests_take_the_pool_longer_per_token_of_answer() -> None:
    """What was accepted last decides how fast the pool is taken to be."""
    short, long = Forecast(), Forecast()
    for number in range(100):
        short.accepted(Ask("low", 1000, 10), 1.0, number * 0.1)
        long.accepted(Ask("low", 10, 1000), 1.0, number * 0.1)
    load = {"low": Waiting(50, 10_000.0)}
    assert wait_of(long, load, 1000.0) > wait_of(short, load, 1000.0)


def test_without_workers_nobody_may_wait() -> None:
    answer = Forecast().decide(default_policy(), ASK, {"low": Waiting(1, 100.0)}, [], 1, 0.0)
    assert isinstance(answer, Refused)


def test_requests_that_workers_hold_take_their_rows() -> None:
    """Eight rows: with none running, one that comes after seven starts at once."""
    load = {"low": Waiting(7, 1400.0)}
    waits = [
        Forecast().decide(default_policy(), ASK, load, [WORKER], 1, 0.0, num_running) for num_running in (0, 1)
    ]
    assert [isinstance(one, Admitted) and one.wait_s == 0.0 for one in waits] == [True, False]


def times_to_come_back(forecast: Forecast, *class_ids: str) -> list[float]:
    """What each is told that comes now: 2,000 requests wait in high, as many in low."""
    load = {"high": Waiting(2000, 400_000.0), "low": Waiting(2000, 400_000.0)}
    answers = [
        forecast.decide(default_policy(), Ask(one, 100, 50), load, [WORKER], 1, 0.0) for one in class_ids
    ]
    return [one.retry_after_s for one in answers if isinstance(one, Refused)]


def test_who_is_refused_is_told_to_come_back_after_those_who_were_refused_before() -> None:
    first, second, third = times_to_come_back(Forecast(), "low", "low", "low")
    assert third - second == pytest.approx(second - first)
    assert second > first


def test_the_less_urgent_come_back_after_the_more_urgent_and_not_the_other_way_round() -> None:
    alone = times_to_come_back(Forecast(), "low")[0]
    high, low, again = times_to_come_back(Forecast(), "high", "low", "high")
    assert low >= alone
    assert again - high < low


def test_nobody_is_told_to_come_back_later_for_others_than_a_bound() -> None:
    forecast = Forecast()
    first = times_to_come_back(forecast, "low")[0]
    last = times_to_come_back(forecast, *["low"] * 500)[-1]
    assert last == pytest.approx(first + default_policy().find("low").max_wait_s)


def looked_at(*looks: tuple[int, float]) -> float:
    """What is missing at the last look, of requests that take 10 s: (how many run, when)."""
    progress = Progress()
    return [progress.missing(num_running, 10.0, at) for num_running, at in looks][-1]


def test_whoever_has_run_for_long_is_halfway_through() -> None:
    assert looked_at((8, 0.0), (8, 5.0), (8, 60.0)) == 0.0


def test_whoever_has_just_begun_lacks_half_a_request() -> None:
    assert looked_at((0, 0.0), (8, 60.0)) == pytest.approx(0.5)


def test_those_who_have_begun_together_come_on_with_time() -> None:
    assert looked_at((0, 0.0), (8, 60.0), (8, 62.0)) == pytest.approx(0.3)


def test_one_that_begins_brings_down_the_mean_of_those_that_run() -> None:
    assert looked_at((4, 0.0), (4, 60.0), (5, 60.0)) == pytest.approx(0.5 - 0.5 * 4 / 5)


def test_who_ends_leaves_the_others_where_they_are() -> None:
    assert looked_at((0, 0.0), (8, 60.0), (4, 62.0)) == pytest.approx(0.3)


def test_of_requests_that_take_no_time_nothing_is_missing() -> None:
    assert Progress().missing(4, 0.0, 60.0) == pytest.approx(0.5)


def test_short_requests_come_on_too() -> None:
    progress = Progress()
    progress.missing(0, 0.8, 60.0)
    assert [progress.missing(8, 0.8, at) for at in (60.0, 60.2)] == pytest.approx([0.5, 0.25])


@pytest.mark.parametrize(("admit_on", "share"), [("max_wait", 0.5), ("ttft", 0.0)])
def test_a_bound_reckons_with_a_burst_that_has_just_begun_to_run_and_an_objective_does_not(
    admit_on: str, share: float
) -> None:
    """Half of what the eight that run take of the pool: 256 + 256 tokens each, while nothing else is known."""
    classes = tuple(one.model_copy(update={"admit_on": admit_on}) for one in default_policy().classes)
    policy, load = default_policy().model_copy(update={"classes": classes}), {"low": Waiting(4, 1000.0)}
    waits_s = []
    for begun_at in (-60.0, 0.0):
        forecast = Forecast(-600.0)
        for num_running, at in ((0, begun_at - 1.0), (8, begun_at), (8, 0.0)):
            answer = forecast.decide(policy, ASK, load, [WORKER], 1, at, num_running)
        waits_s.append(answer.wait_s if isinstance(answer, Admitted) else float(answer.numbers["predicted_s"]))
    mean, each = MeanRequest(256.0, 256.0, 256.0), request_cost(policy, Ask("low", 256, 256))
    supply = supply_for(policy, policy.find("low"), [WORKER], mean, 8)
    assert waits_s[1] - waits_s[0] == pytest.approx(share * 8 * each / supply.rate)


HASHES = tuple(range(100, 110))
"""Of a prompt of 160 tokens and a few more."""


def cached_of(forecast: Forecast, num_tokens: int = 165, hashes: tuple[int, ...] = HASHES) -> int:
    return forecast.ask("low", num_tokens, 50, hashes, 16).num_cached_tokens


def brought(times: int, num_workers: int = 1, num_kv_tokens: int = 100_000) -> Forecast:
    forecast, worker = Forecast(), replace(WORKER, num_kv_tokens=num_kv_tokens)
    for number in range(times):
        ask = forecast.ask("low", 165, 50, HASHES, 16)
        forecast.decide(default_policy(), ask, {}, [worker] * num_workers, 1, float(number))
        forecast.accepted(ask, 1.0, float(number), HASHES)
    return forecast


def test_a_prompt_that_came_before_is_expected_to_be_cached() -> None:
    assert (cached_of(brought(0)), cached_of(brought(1))) == (0, 160)


def test_a_prompts_last_token_is_computed_and_so_its_block() -> None:
    assert [cached_of(brought(1), num_tokens) for num_tokens in (160, 161)] == [144, 160]


def test_only_the_common_beginning_is_expected_to_be_cached() -> None:
    assert cached_of(brought(1), hashes=(*HASHES[:3], 7, *HASHES[4:])) == 48


@pytest.mark.parametrize(("times", "num_cached"), [(1, 0), (2, 0), (3, 160)])
def test_with_three_workers_a_prefix_is_expected_everywhere_once_it_came_three_times(
    times: int, num_cached: int
) -> None:
    assert cached_of(brought(times, num_workers=3)) == num_cached


def test_prefixes_beyond_half_of_a_workers_memory_are_forgotten_the_oldest_first() -> None:
    """20 blocks: ten are remembered."""
    forecast = brought(1, num_kv_tokens=320)
    forecast.accepted(ASK, 1.0, 1.0, (1, 2, 3))
    assert cached_of(forecast) == 0  # its first block is gone
    assert cached_of(forecast, hashes=(1, 2, 3)) == 48


def test_a_cached_prompt_costs_less_and_is_expected_sooner() -> None:
    forecast, policy = brought(1), default_policy()
    worker = replace(WORKER, cost_model=CostModel({"base_s": 0.01, "prefill_token_s": 0.001}))
    fresh, cached = (forecast.ask("low", 165, 50, hashes, 16) for hashes in ((), HASHES))
    answers = [forecast.decide(policy, one, {}, [worker], 1, 5.0) for one in (fresh, cached)]
    saved = policy.fairness.prompt_token_cost - policy.fairness.cached_token_cost
    assert request_cost(policy, fresh) - request_cost(policy, cached) == pytest.approx(160 * saved)
    assert all(isinstance(one, Admitted) for one in answers)
    assert answers[0].ttft_s - answers[1].ttft_s > 0.1
