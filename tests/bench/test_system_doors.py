"""The gateways' admission as the bench simulates it: their memories, and their late view of the workers."""

from __future__ import annotations

from bench.system_clients import Run
from bench.system_doors import REFRESH_S, Doors
from bench.system_load import Planned, Seen
from scheduler_worker.core.plan import Capacity, StepShape
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader

POLICY = default_policy()
CAPACITY = Capacity(num_slots=8, num_blocks=1000, block_size=16, max_model_len=4096)


def _header(number: int, arrived_at: float) -> SequenceHeader:
    return SequenceHeader(f"r{number}", "low", "team", number, arrived_at, 100, 60)


def _doors(num: int = 1) -> tuple[Doors, Scheduler]:
    doors, scheduler = Doors(POLICY, CAPACITY, num, opened_at=1000.0), Scheduler(POLICY, CAPACITY)
    doors.begun(1000.0, [place % num for place in range(2000)], scheduler)
    return doors, scheduler


def _num_accepted(doors: Doors, num: int, at: float = 20.0) -> int:
    return sum(doors.refusal(_header(place + 1, at), at) is None for place in range(num))


def test_requests_that_wait_unclaimed_close_the_door_to_further_ones() -> None:
    doors, _ = _doors()

    assert 0 < _num_accepted(doors, 500) < 500


def test_what_was_claimed_and_has_ended_opens_it_again() -> None:
    doors, _ = _doors()
    num = _num_accepted(doors, 500)
    for place in range(num):
        doors.ended(f"r{place + 1}", "low", 60)

    assert doors.refusal(_header(900, 25.0), 25.0) is None


def test_a_gateway_hears_of_a_slower_worker_only_when_it_looks() -> None:
    """Two worlds alike, but that in one the worker turns slow within the time between two looks."""
    (same, _), (slow, scheduler) = _doors(), _doors()
    for doors in (same, slow):
        doors.refusal(_header(1, 10.0), 10.0)
    for _ in range(1000):
        scheduler.cost_model.observe(StepShape(8, 0, 800, 0), 5.0)
    soon = 10.0 + 0.9 * REFRESH_S

    assert _num_accepted(slow, 500, soon) == _num_accepted(same, 500, soon)


def test_a_gateway_that_has_looked_refuses_by_what_the_worker_says_now() -> None:
    doors, scheduler = _doors()
    _num_accepted(doors, 1, 10.0)
    for _ in range(1000):
        scheduler.cost_model.observe(StepShape(8, 0, 800, 0), 5.0)

    assert _num_accepted(doors, 500, 10.0 + 2 * REFRESH_S) < _num_accepted(_doors()[0], 500, 10.0 + 2 * REFRESH_S)


def test_a_recalled_run_teaches_how_long_answers_become() -> None:
    """Short answers to requests that allowed 60 tokens: more of them are let in."""
    taught, _ = _doors()
    requests = [Planned(place, 0.1 * place, 0, "low", 100, 60) for place in range(100)]
    seen = [Seen(one.index, one.at_s, 0.0, 200, one.at_s + 0.01, one.at_s + 0.02, 5) for one in requests]
    taught.recall(Run("learning", requests, seen, 0.0, 10.0, 1000.0))

    assert _num_accepted(taught, 500, 60.0) > _num_accepted(_doors()[0], 500, 60.0)
