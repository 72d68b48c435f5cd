"""The mergeable sketch of what is kept longer than the exact window."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.telemetry.sketch import (
    RELATIVE_ERROR,
    from_json,
    merge,
    sketch_of,
    sketch_percentiles,
    to_json,
)
from controlplane.telemetry.windows import percentiles

latencies = st.lists(st.floats(min_value=0.0001, max_value=10_000), min_size=1, max_size=200)


@given(latencies)
def test_percentiles_are_within_one_percent_of_the_exact_ones(values: list[float]) -> None:
    exact, found = percentiles(sorted(values)), sketch_percentiles(sketch_of(values))
    assert [found.p50, found.p95, found.p99] == pytest.approx(
        [exact.p50, exact.p95, exact.p99], rel=RELATIVE_ERROR + 1e-9
    )


@given(latencies, latencies)
def test_merging_sketches_is_the_sketch_of_all_samples(some: list[float], others: list[float]) -> None:
    assert merge([sketch_of(some), sketch_of(others)]) == sketch_of(some + others)


@given(latencies)
def test_a_sketch_survives_json(values: list[float]) -> None:
    assert from_json(json.loads(json.dumps(to_json(sketch_of(values))))) == sketch_of(values)
