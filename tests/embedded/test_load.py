"""What the load generator sends, and when."""

from __future__ import annotations

import random

import pytest

from controlplane.embedded.load import is_burst, pick_class, request_body
from controlplane.embedded.sizing import Load

LOAD = Load(rate_per_s=1.0, burst_rate_per_s=5.0, burst_s=20.0, burst_every_s=180.0)
KEYS = {"high": "a", "medium": "b", "low": "c"}


@pytest.mark.parametrize(
    ("elapsed_s", "expected"), [(0, False), (59, False), (60, True), (79, True), (80, False), (240, True)]
)
def test_bursts_begin_after_a_minute_and_come_back(elapsed_s: float, expected: bool) -> None:
    assert is_burst(LOAD, elapsed_s) is expected


def test_a_burst_is_mostly_of_the_least_urgent_class() -> None:
    rng = random.Random(1)
    picked = [pick_class(KEYS, True, rng) for _ in range(1000)]
    assert picked.count("low") > picked.count("medium") > picked.count("high")


def test_classes_of_other_names_get_load_too() -> None:
    rng = random.Random(1)
    assert {pick_class({"gold": "a", "tin": "b"}, False, rng) for _ in range(100)} == {"gold", "tin"}


def test_a_seed_repeats_the_requests() -> None:
    assert request_body("m", random.Random(7)) == request_body("m", random.Random(7))
