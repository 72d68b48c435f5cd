"""Every accepted request ends with the tokens it was to make, under every scheduler, and always the same way."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from random import Random
from typing import Any

import pytest

from scheduler_worker.core.plan import Capacity, Event, EventKind, StepPlan
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.scheduler import Scheduler, SchedulerVerbs
from scheduler_worker.sim.baselines import BaselineOptions, BaselineScheduler, StaticScheduler
from scheduler_worker.sim.cost import H200_1B, StepCost
from scheduler_worker.sim.host import Host
from scheduler_worker.sim.report import nearest_rank, report
from scheduler_worker.sim.run import History, Options, Simulation
from scheduler_worker.sim.trace import Request

POLICY = default_policy()
SMALL = Capacity(num_slots=8, num_blocks=120, block_size=16, max_model_len=4096, num_swap_blocks=240)
NAMES = ("tidegate", "fcfs", "static", "priority", "vtc", "lcf")


def traffic(num: int, seed: int = 3) -> list[Request]:
    draw = Random(seed)
    classes, at, requests = ("high", "medium", "low"), 0.0, []
    for _ in range(num):
        at += draw.expovariate(400.0)
        tenant = f"team-{draw.randrange(4)}"
        requests.append(Request(at, draw.randint(1, 300), draw.randint(1, 60), draw.choice(classes), tenant))
    return requests


def make(name: str, policy: Policy = POLICY, capacity: Capacity = SMALL) -> SchedulerVerbs:
    if name == "tidegate":
        return Scheduler(policy, capacity)
    kind = StaticScheduler if name == "static" else BaselineScheduler
    return kind(name, policy, capacity, BaselineOptions())


def run(
    name: str, requests: list[Request], workers: int = 1, cost: StepCost = H200_1B, **further: Any
) -> History:
    schedulers = [make(name) for _ in range(workers)]
    options = Options(max_tokens=64, **further)
    return Simulation(requests, schedulers, [cost] * workers, options).run()


@pytest.mark.parametrize("name", NAMES)
def test_every_request_gets_exactly_the_tokens_of_the_trace(name: str) -> None:
    requests = traffic(150)
    history = run(name, requests)
    assert [one.num_output_tokens for one in history.outcomes] == [one.num_output_tokens for one in requests]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_workload_gives_the_same_history(name: str) -> None:
    requests = traffic(80)
    assert report(run(name, requests), POLICY, 1) == report(run(name, requests), POLICY, 1)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_mirror_one_queue_serve_each_request_once(workers: int) -> None:
    requests = traffic(150)
    history = run("tidegate", requests, workers)
    assert [one.num_output_tokens for one in history.outcomes] == [one.num_output_tokens for one in requests]


def test_two_workers_lose_races_and_finish_sooner_than_one() -> None:
    requests = [Request(0.0, 100, 40, "low") for _ in range(100)]
    alone, together = run("fcfs", requests), run("fcfs", requests, workers=2)
    assert together.lost_races > 0
    assert together.makespan_s < 0.7 * alone.makespan_s


class Noting(BaselineScheduler):
    """Notes of each step how many rows decode and how many prompt tokens are computed."""

    def begin(self, plan: StepPlan) -> None:
        self.shapes.append((plan.shape.num_decode_rows, plan.shape.num_prefill_tokens))
        super().begin(plan)


@pytest.mark.parametrize("known_lengths", [True, False])
def test_prompts_apart_wait_for_so_many_decode_steps_and_share_none(known_lengths: bool) -> None:
    requests = traffic(150)
    scheduler = Noting("fcfs", POLICY, SMALL, BaselineOptions(known_lengths=known_lengths, decodes_between=5))
    scheduler.shapes = []
    options = Options(max_tokens=64, known_lengths=known_lengths)
    history = Simulation(requests, [scheduler], [H200_1B], options).run()
    assert [one.num_output_tokens for one in history.outcomes] == [one.num_output_tokens for one in requests]
    assert not any(rows and prompts for rows, prompts in scheduler.shapes)
    gaps = [len(list(group)) for is_decode, group in groupby(scheduler.shapes, lambda one: one[0] > 0) if is_decode]
    assert min(gaps[:-1]) >= 5
    assert len(gaps) > 10


def test_continuous_batching_beats_static_batches() -> None:
    requests = traffic(200)
    assert run("fcfs", requests).makespan_s < run("static", requests).makespan_s


def test_strict_priority_serves_the_most_urgent_class_first() -> None:
    late = report(run("priority", traffic(200)), POLICY, 1)["classes"]
    assert late["high"]["wait_s"]["p95"] < late["low"]["wait_s"]["p95"]


def test_a_bounded_queue_refuses_beyond_its_bound() -> None:
    requests = [Request(0.0, 100, 40, "low") for _ in range(50)]
    scheduler = BaselineScheduler("priority", POLICY, SMALL, BaselineOptions(queue_bound=10))
    history = Simulation(requests, [scheduler], [H200_1B], Options()).run()
    assert sum(one.refused for one in history.outcomes) > 0
    assert all(one.refused or one.num_output_tokens == 40 for one in history.outcomes)


def test_displacing_throws_out_the_least_urgent() -> None:
    requests = [Request(0.0, 100, 40, "low") for _ in range(30)] + [
        Request(0.01, 100, 40, "high") for _ in range(5)
    ]
    scheduler = BaselineScheduler("priority", POLICY, SMALL, BaselineOptions(queue_bound=10, displace=True))
    history = Simulation(requests, [scheduler], [H200_1B], Options()).run()
    assert not any(one.refused for one in history.outcomes if one.request.class_id == "high")


def test_memory_pressure_recomputes_and_still_ends_every_request() -> None:
    tight = Capacity(num_slots=16, num_blocks=40, block_size=16, max_model_len=640)
    requests = [Request(0.0, 60, 60, "low") for _ in range(30)]
    scheduler = BaselineScheduler("fcfs", POLICY, tight, BaselineOptions())
    history = Simulation(requests, [scheduler], [H200_1B], Options(max_tokens=64)).run()
    assert history.recomputed_tokens > 0
    assert all(one.num_output_tokens == 60 for one in history.outcomes)


@pytest.mark.parametrize(("hashes", "num_computed"), [(range(100), 16), (range(50), 1600 - 50 * 16), ((), 1600)])
def test_a_prefix_that_the_trace_repeats_is_computed_once(hashes: Iterable[int], num_computed: int) -> None:
    """A second prompt of 1,600 tokens, a second later; its last token is computed whatever is known."""
    requests = [Request(at, 1600, 2, "high", block_hashes=tuple(hashes)) for at in (0.0, 1.0)]
    first, second = run("tidegate", requests).outcomes
    assert first.ttft_s is not None
    assert second.ttft_s is not None
    saved_s = (1600 - num_computed) * H200_1B.prefill_token_s
    assert first.ttft_s - second.ttft_s == pytest.approx(saved_s, abs=1e-9)


def test_nearest_rank_of_a_known_list() -> None:
    assert [nearest_rank([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.75, 0.99, 1.0)] == [
        2.0,
        3.0,
        4.0,
        4.0,
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bound_that_passes_in_every_mirror_is_told_once(workers: int) -> None:
    """300 requests at once on eight slots a worker: most wait for longer than 50 ms."""
    classes = tuple(one.model_copy(update={"max_wait_s": 0.05}) for one in POLICY.classes)
    rules = POLICY.model_copy(update={"classes": classes})
    told_by_workers: list[str] = []
    simulation = Simulation(
        [Request(0.0, 100, 40, "low") for _ in range(300)],
        [make("tidegate", rules) for _ in range(workers)],
        [H200_1B] * workers,
        Options(max_tokens=64),
        observer=lambda applied: told_by_workers.extend(bounds_missed(applied.events)),
    )
    told = bounds_missed(simulation.run().events)
    assert len(told) == len(set(told)) > 100
    assert len(told_by_workers) > (workers - 1) * len(told)


def bounds_missed(events: Iterable[Event]) -> list[str]:
    return [event.seq_id for event in events if event.kind is EventKind.BOUND_MISSED and "waited_s" in event.numbers]


def test_a_mirrored_worker_starts_an_arrival_later_by_three_ways() -> None:
    requests = [Request(1.0, 100, 4, "low")]
    near, far = (run("tidegate", requests, mirrored=mirrored, network_s=0.01) for mirrored in (False, True))
    assert far.outcomes[0].wait_s == pytest.approx((near.outcomes[0].wait_s or 0.0) + 0.03, abs=0.002)


def test_a_mirrored_worker_serves_each_request_once() -> None:
    requests = traffic(150)
    history = run("tidegate", requests, mirrored=True, in_flight=2)
    assert [one.num_output_tokens for one in history.outcomes] == [one.num_output_tokens for one in requests]


class Slow(Host):
    """News take 10 ms, a claim 20, its answer 40, and the device idles 5 ms after each step."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def news_s(self, now: float) -> float:
        return 0.01

    def claim_s(self, now: float) -> float:
        return 0.02

    def answer_s(self, now: float) -> float:
        return 0.04

    def beside_s(self, now: float, num_rows: int) -> float:
        return 0.005


def test_a_hosts_ways_delay_the_claim_and_then_the_first_step() -> None:
    (outcome,) = run("tidegate", [Request(1.0, 100, 4, "low")], mirrored=True, host=Slow()).outcomes
    assert (outcome.claimed_at, outcome.first_scheduled_at) == pytest.approx((1.03, 1.07), abs=0.002)


def test_what_a_step_takes_beside_the_device_delays_tokens_but_is_not_learned() -> None:
    requests = [Request(0.0, 100, 11, "low")]
    plain, slow = (Scheduler(POLICY, SMALL) for _ in range(2))
    (near,) = Simulation(requests, [plain], [H200_1B], Options(mirrored=True, known_lengths=True)).run().outcomes
    options = Options(mirrored=True, known_lengths=True, host=Slow())
    (far,) = Simulation(requests, [slow], [H200_1B], options).run().outcomes
    assert (far.tpot_s or 0.0) - (near.tpot_s or 0.0) == pytest.approx(0.005)
    assert slow.cost_model.to_dict() == plain.cost_model.to_dict()


def test_a_request_waits_in_the_queue_only_once_it_is_there() -> None:
    (outcome,) = run("tidegate", [Request(1.0, 100, 4, "low", enqueue_s=0.25)]).outcomes
    assert (outcome.arrived_at, outcome.wait_s) == pytest.approx((1.0, 0.25), abs=0.002)
