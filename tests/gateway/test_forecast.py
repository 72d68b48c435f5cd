"""What admission reckons with, without a network."""

from __future__ import annotations

import pytest

from controlplane.gateway.forecast import Forecast
from scheduler_worker.core import admission as core
from scheduler_worker.core.forecast import ArrivalRate
from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.protocol.scripts import ClassReserve

POLICY = default_policy()


def worker(**cost_model: float) -> WorkerInfo:
    return WorkerInfo(
        worker="w",
        pool="default",
        model="m",
        started_at=0.0,
        num_slots=8,
        num_blocks=1000,
        block_size=16,
        max_model_len=2048,
        cost_model=cost_model or {"base_s": 0.01, "decode_row_s": 0.001, "prefill_token_s": 0.0001},
    )


def decide(forecast: Forecast, load: dict[str, ClassReserve], class_id: str = "low") -> object:
    ask = forecast.ask(class_id, num_prompt_tokens=100, max_tokens=100)
    return forecast.decide(POLICY, ask, load, {"w": worker()}, num_gateways=1, now=100.0)


def test_an_empty_queue_admits() -> None:
    assert isinstance(decide(Forecast(), {}), core.Admitted)


def test_a_queue_that_would_outlast_the_bound_refuses_with_the_time_to_come_back() -> None:
    refused = decide(Forecast(), {"low": ClassReserve(num=500, cost=1e6)})
    assert isinstance(refused, core.Refused)
    assert refused.retry_after_s > 0


def test_load_under_a_retired_name_counts_for_the_class_that_serves_it() -> None:
    policy = POLICY.model_copy(update={"retired": {"bulk": "low"}})
    forecast = Forecast()
    ask = forecast.ask("low", 100, 100)
    load = {"bulk": ClassReserve(num=500, cost=1e6)}
    assert isinstance(forecast.decide(policy, ask, load, {"w": worker()}, 1, 100.0), core.Refused)


def test_load_of_a_class_that_never_was_is_left_out() -> None:
    assert isinstance(decide(Forecast(), {"ghost": ClassReserve(num=500, cost=1e6)}), core.Admitted)


def test_the_expected_answer_follows_those_that_ended() -> None:
    forecast = Forecast()
    for _ in range(50):
        forecast.ended("low", 10)
    assert forecast.ask("low", 100, 4000).num_output_tokens == 10


def test_arrivals_fade() -> None:
    rate = ArrivalRate()
    for second in range(100):
        rate.add(100.0, now=float(second))
    assert rate.value(99.0 + 30.0) < 0.06 * rate.value(99.0)


def test_a_steady_flow_is_measured() -> None:
    rate = ArrivalRate()
    for tenth in range(1000):
        rate.add(5.0, now=tenth / 10)
    assert rate.value(99.9) == pytest.approx(50.0, rel=0.06)


def test_a_flow_that_has_just_begun_is_measured_too() -> None:
    rate = ArrivalRate()
    for tenth in range(11):
        rate.add(5.0, now=tenth / 10)
    assert rate.value(1.0) == pytest.approx(50.0, rel=0.2)


def test_a_burst_is_seen_at_once_and_not_forgotten_at_once() -> None:
    rate = ArrivalRate()
    rate.add(1.0, now=0.0)
    for hundredth in range(200):
        rate.add(5.0, now=100.0 + hundredth / 100)
    assert rate.value(102.0) > 0.8 * 500.0
    assert rate.value(106.0) > 0.1 * 500.0
