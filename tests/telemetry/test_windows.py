"""Exact percentiles of a sliding window."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.telemetry.windows import SampleWindow, SlidingSum, nearest_rank, weighted_median

SHARES = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "p99": Fraction(99, 100)}
latencies = st.floats(min_value=0.0001, max_value=100)


def by_definition(values: list[float], share: Fraction) -> float:
    """The smallest value that at least `share` of the samples do not exceed, counted out."""
    return min(value for value in values if sum(other <= value for other in values) >= share * len(values))


@pytest.mark.parametrize(("num", "rank"), [(1, 1), (20, 19), (21, 20), (100, 95), (101, 96)])
def test_the_95th_percentile_is_the_sample_at_the_nearest_rank(num: int, rank: int) -> None:
    assert nearest_rank(list(range(1, num + 1)), 0.95) == rank


def test_without_samples_there_is_no_percentile() -> None:
    assert nearest_rank([], 0.5) is None


@given(st.lists(latencies, min_size=1, max_size=300))
def test_percentiles_equal_the_definition_counted_out(values: list[float]) -> None:
    window = SampleWindow(300)
    for number, value in enumerate(values):
        window.add(number * 0.1, value)
    found = window.percentiles()
    assert {name: getattr(found, name) for name in SHARES} == {
        name: by_definition(values, share) for name, share in SHARES.items()
    }


@given(st.lists(st.tuples(st.floats(0, 600), latencies), max_size=200), st.floats(0, 900), st.randoms())
def test_what_is_as_old_as_the_window_is_forgotten(
    samples: list[tuple[float, float]], now: float, random
) -> None:
    window = SampleWindow(300)
    shuffled = random.sample(samples, len(samples))
    for at, value in shuffled:
        window.add(at, value)
    window.move_to(now)
    kept = [value for at, value in samples if at > now - 300]
    assert (len(window), window.percentiles().p50) == (
        len(kept),
        by_definition(kept, SHARES["p50"]) if kept else None,
    )



def test_a_rate_over_less_than_the_window_divides_by_the_time_there_was() -> None:
    tokens = SlidingSum(10)
    tokens.add(102, 30)
    assert tokens.rate(104, since=100) == 30 / 4


def test_a_rate_forgets_what_left_the_window() -> None:
    tokens = SlidingSum(10)
    tokens.add(100, 1000)
    tokens.add(105, 30)
    assert tokens.rate(110, since=0) == 30 / 10


def test_the_weighted_median_is_where_half_of_the_weight_is_reached() -> None:
    assert weighted_median([(0.030, 1), (0.020, 9), (0.025, 4)]) == 0.020
