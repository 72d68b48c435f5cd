"""A worker whose Redis goes away: nothing is lost, nothing is sent twice."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.worker.fake_executor import continuation
from tests.worker.fleet import Fleet, wait_until
from tests.worker.proxy import Proxy
from tests.worker.test_processes import prompt


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    made = Proxy(redis_url)
    yield made
    made.end()


def start(fleet: Fleet, proxy: Proxy, step_s: float) -> None:
    fleet.start("w1", redis_url=proxy.url, step_s=step_s)
    for number in range(6):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=120)
    fleet.client.wait_for_tokens("r5", 3)


def received(fleet: Fleet) -> list[list[int]]:
    return [one.tokens for one in fleet.client.outputs.values()]


WANTED = [continuation(prompt(number), 120) for number in range(6)]


def test_connections_that_break_all_the_time_lose_and_double_no_token(fleet: Fleet, proxy: Proxy) -> None:
    start(fleet, proxy, step_s=0.01)
    num_cuts = 0
    while not all(one.finish for one in fleet.client.outputs.values()):
        proxy.cut()
        num_cuts += 1
        time.sleep(0.037)
        fleet.client.read()
        assert num_cuts < 1000, "the worker makes no progress"
    assert num_cuts > 10
    assert received(fleet) == WANTED
    assert fleet.client.faults() == {}


def test_a_short_outage_keeps_the_claims(fleet: Fleet, proxy: Proxy) -> None:
    start(fleet, proxy, step_s=0.02)
    proxy.close()
    time.sleep(1.0)
    proxy.reopen()
    fleet.client.wait_for_end()
    assert received(fleet) == WANTED
    assert {one.attempt for one in fleet.client.outputs.values()} == {0}
    assert fleet.client.faults() == {}


def test_a_worker_cut_off_beyond_its_lease_is_replaced_and_fenced(fleet: Fleet, proxy: Proxy) -> None:
    start(fleet, proxy, step_s=0.02)
    proxy.close()
    fleet.start("w2", step_s=0.005)
    fleet.client.wait_for_end()
    proxy.reopen()
    wait_until(lambda: "redis is back" in fleet.workers[0].log.read_text(), "w1 is back")
    time.sleep(0.5)
    assert received(fleet) == WANTED
    assert fleet.client.faults() == {}


def test_a_worker_alone_goes_on_after_an_outage_beyond_its_lease(fleet: Fleet, proxy: Proxy) -> None:
    start(fleet, proxy, step_s=0.02)
    proxy.close()
    time.sleep(6.0)
    proxy.reopen()
    fleet.client.wait_for_end()
    assert received(fleet) == WANTED
    assert fleet.client.faults() == {}


def test_a_request_that_arrived_during_an_outage_is_served_after_it(fleet: Fleet, proxy: Proxy) -> None:
    fleet.start("w1", redis_url=proxy.url)
    proxy.close()
    fleet.client.send("late", prompt(9), max_tokens=10)
    time.sleep(0.3)
    proxy.reopen()
    fleet.client.wait_for_end()
    assert fleet.client.outputs["late"].tokens == continuation(prompt(9), 10)


def test_a_worker_runs_only_a_few_steps_ahead_of_what_redis_knows(fleet: Fleet, proxy: Proxy) -> None:
    start(fleet, proxy, step_s=0.02)
    proxy.close()
    time.sleep(2.0)
    before = fleet.client.num_tokens("r0")
    proxy.reopen()
    fleet.client.wait_for_tokens("r0", before + 1)
    first_frames = fleet.client.num_tokens("r0") - before
    assert first_frames < 60, "two seconds of steps of 20 ms were computed and queued"


def test_a_worker_starts_before_redis_does(fleet: Fleet, proxy: Proxy) -> None:
    proxy.close()
    fleet.client.send("a", prompt(1), max_tokens=4)
    fleet.start("w1", redis_url=proxy.url, wait=False)
    time.sleep(0.5)
    proxy.reopen()
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 4)
