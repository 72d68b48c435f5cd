"""Roll-ups in Postgres: stored once, merged without loss, forgotten in time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import models

from controlplane.telemetry import selectors, services
from controlplane.telemetry.buckets import Rollup
from controlplane.telemetry.models import FleetRollup, LatencyRollup, Resolution
from controlplane.telemetry.promise import Ended
from scheduler_worker.core.policy import Policy
from tests.telemetry.builders import T0, ended, first, fold, gateway, load, policy, worker

pytestmark = pytest.mark.django_db

POOL = "default"
START = datetime.fromtimestamp(T0, UTC)


def rollups(num: int, num_late: int = 0, begin: float = 0, live: Policy | None = None) -> tuple[Rollup, ...]:
    """`num` intervals of ten requests each, of which `num_late` wait 0.5 s: late by the usual policy."""
    one = fold(live)
    for interval in range(num):
        at = begin + interval * 10 + 5
        waits = [0.5 if number < num_late else 0.05 for number in range(10)]
        one.take(
            gateway(
                at,
                first_tokens=tuple(first(at, wait) for wait in waits),
                finished=tuple(ended(at, wait) for wait in waits),
            )
        )
        one.take(worker(at, num_generated_tokens={"high": 200}, classes=(load(num_waiting=interval % 5),)))
    return one.close_rollups(T0 + begin + num * 10 + 10)


def num_ended(resolution: Resolution) -> int:
    rows = LatencyRollup.objects.filter(resolution_s=resolution)
    return rows.aggregate(total=models.Sum("num_ended"))["total"] or 0


def test_what_was_stored_is_read_back() -> None:
    stored = rollups(3)
    services.store(POOL, stored)
    read = selectors.rollups(POOL, T0)
    assert [(one.started_at, one.classes) for one in read] == [
        (one.started_at, one.classes) for one in stored
    ]


def test_points_read_back_are_those_of_the_page_within_a_percent() -> None:
    (stored,) = rollups(1)
    services.store(POOL, [stored])
    (point,) = selectors.points(POOL, T0, 10)
    assert point.ttft["high"].p50 == pytest.approx(0.05, rel=0.01)
    assert (point.tokens_per_s, point.waiting, point.batch_limit) == ({"high": 20.0}, {"high": 0}, 8)


def test_storing_twice_counts_once() -> None:
    stored = rollups(3)
    services.store(POOL, stored)
    services.store(POOL, stored)
    assert num_ended(Resolution.FINE) == 30


def test_another_pools_roll_ups_are_not_read() -> None:
    services.store("other", rollups(3))
    assert selectors.rollups(POOL, T0) == []


def test_ten_second_intervals_become_five_minutes() -> None:
    services.store(POOL, rollups(30, num_late=2))
    services.roll_up(START + timedelta(seconds=300 + 90))
    (row,) = LatencyRollup.objects.filter(resolution_s=Resolution.MIDDLE)
    assert (row.num_ended, row.num_late, sum(row.ttft.values()), row.num_tokens) == (300, 60, 300, 6000)


def test_an_interval_that_may_still_grow_is_not_merged() -> None:
    services.store(POOL, rollups(30))
    services.roll_up(START + timedelta(seconds=300 + 89))
    assert num_ended(Resolution.MIDDLE) == 0


def test_five_minutes_become_hours() -> None:
    services.store(POOL, rollups(360))
    services.roll_up(START + timedelta(seconds=3600 + 90))
    assert num_ended(Resolution.COARSE) == 3600


def test_rolling_up_again_changes_nothing() -> None:
    services.store(POOL, rollups(40))
    for seconds in (400, 460, 520):
        services.roll_up(START + timedelta(seconds=seconds))
    assert num_ended(Resolution.MIDDLE) == 300


def test_the_budget_counts_each_request_once_over_all_resolutions() -> None:
    services.store(POOL, rollups(400, num_late=1))  # an hour, a merged five minutes, and 10 s × 10 beyond
    services.roll_up(START + timedelta(seconds=4000 + 90))
    counted = {("high", "0.1/0.02/-"): Ended(4000, 400, since=T0)}
    assert selectors.ended_in_budget(POOL, T0 + 4100) == (counted, T0 + 4000)


def test_requests_that_other_objectives_judged_stay_apart_when_intervals_are_merged() -> None:
    services.store(POOL, rollups(15, num_late=5))
    slo = {"ttft_s": 3, "tpot_s": 0.02}
    relaxed = policy({"id": "high", "rank": 0, "weight": 1, "slo": slo})
    services.store(POOL, rollups(15, num_late=5, begin=150, live=relaxed))
    services.roll_up(START + timedelta(seconds=300 + 90))
    assert selectors.ended_in_budget(POOL, T0 + 400)[0] == {
        ("high", "0.1/0.02/-"): Ended(150, 75, since=T0),
        ("high", "3/0.02/-"): Ended(150, 0, since=T0 + 150),  # the merged interval begins at T0
    }


def test_the_budget_of_a_new_pool_is_empty() -> None:
    assert selectors.ended_in_budget(POOL, T0)[0] == {}


def test_what_is_older_than_thirty_days_is_not_in_the_budget() -> None:
    services.store(POOL, rollups(360))
    services.roll_up(START + timedelta(hours=2))
    later = START + timedelta(days=30, hours=2)
    assert selectors.ended_in_budget(POOL, later.timestamp())[0] == {}


def test_fine_intervals_are_forgotten_after_they_were_merged() -> None:
    services.store(POOL, rollups(360))
    services.forget_old(START + timedelta(hours=9))
    left = set(LatencyRollup.objects.values_list("resolution_s", flat=True))
    assert (left, FleetRollup.objects.count()) == ({Resolution.MIDDLE, Resolution.COARSE}, 0)


def test_everything_is_forgotten_in_the_end() -> None:
    services.store(POOL, rollups(360))
    services.forget_old(START + timedelta(days=32))
    assert LatencyRollup.objects.count() == 0


def test_points_of_a_minute_merge_six_intervals() -> None:
    services.store(POOL, rollups(12))
    minutes = selectors.points(POOL, T0, 60)
    assert [(point.at - T0, point.ttft["high"].num, point.tokens_per_s["high"]) for point in minutes] == [
        (60, 60, 20.0),
        (120, 60, 20.0),
    ]


def test_a_classes_colour_is_kept_for_life() -> None:
    services.colors(POOL, ["high", "low"])
    services.colors(POOL, ["low"])
    assert services.colors(POOL, ["urgent", "low", "high"]) == {"urgent": 2, "low": 1, "high": 0}


def test_the_seventh_class_starts_the_colours_over() -> None:
    assert services.colors(POOL, [f"c{number}" for number in range(7)])["c6"] == 0
