"""Classes and load: what is drawn is seeded, what is asked for is what comes out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler_worker.sim.trace import Request
from scheduler_worker.sim.workload import assign_classes, at_rate, duration_s, superposed

TRACE = [Request(float(second), 10, 10) for second in range(1001)]


def test_classes_are_the_same_for_the_same_seed() -> None:
    shares = [("high", 20.0), ("low", 80.0)]
    assert assign_classes(TRACE, shares, 7) == assign_classes(TRACE, shares, 7)


def test_classes_are_drawn_by_their_shares() -> None:
    drawn = assign_classes(TRACE, [("high", 20.0), ("low", 80.0)], 1)
    num_high = sum(one.class_id == "high" for one in drawn)
    assert 160 <= num_high <= 240  # 200 expected of 1,001; 3 standard deviations are 38


def test_a_class_of_the_trace_is_kept() -> None:
    assert assign_classes([Request(0.0, 1, 1, "gold")], [("high", 1.0)], 0)[0].class_id == "gold"


def test_a_compressed_trace_has_the_rate_that_was_asked_for() -> None:
    assert abs(duration_s(at_rate(TRACE, 50.0)) - 1001 / 50.0) < 1e-6


@given(st.floats(1.5, 40.0), st.integers(0, 100))
def test_superposed_copies_have_about_the_trace_s_size_and_the_rate_asked_for(
    rate_rps: float, seed: int
) -> None:
    merged = superposed(TRACE, rate_rps, seed)
    assert 0.9 * len(TRACE) <= len(merged) <= 1.1 * len(TRACE)
    assert max(one.arrival_s for one in merged) <= len(TRACE) / rate_rps * 1.01
