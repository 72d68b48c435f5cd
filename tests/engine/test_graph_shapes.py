"""Which shapes are captured, and what they need: no device is involved."""

from __future__ import annotations

import pytest

from scheduler_worker.engine.cuda_graphs import graph_shapes, largest_shape, output_bytes


@pytest.mark.parametrize("num_slots", [1, 3, 32, 256, 700])
def test_a_decode_step_of_every_size_fits_a_shape(num_slots: int) -> None:
    rows = [shape.num_decode_rows for shape in graph_shapes(num_slots) if not shape.num_chunks]
    assert max(rows) >= num_slots


@pytest.mark.parametrize("num_slots", [1, 32, 256])
def test_no_shape_exceeds_the_largest(num_slots: int) -> None:
    largest = largest_shape(num_slots)
    assert all(
        shape.num_decode_rows <= largest.num_decode_rows and shape.num_tokens <= largest.num_tokens
        for shape in graph_shapes(num_slots)
    )


def test_no_shape_has_a_dimension_of_one() -> None:
    """A compiler would take it for a constant and compile again."""
    assert all(shape.num_tokens > 1 and shape.num_rows > 1 for shape in graph_shapes(1))


def test_the_logits_of_all_graphs_are_counted() -> None:
    num_rows = sum(shape.num_rows for shape in graph_shapes(32))
    assert output_bytes(32, 1000, 2) == num_rows * 2000
