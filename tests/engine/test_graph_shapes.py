"""Which shapes are captured, and what they need: no device is involved."""

from __future__ import annotations

import pytest

from scheduler_worker.engine.attention.capturable import GraphShape
from scheduler_worker.engine.cuda_graphs import graph_shapes, largest_shape, output_bytes, stand_ins


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
    assert all(shape.num_tokens > 1 for shape in graph_shapes(1))
    assert output_bytes(1, 1, 1) >= 2 * len(graph_shapes(1))


def test_the_logits_of_all_graphs_are_counted_and_none_has_more_rows_than_slots() -> None:
    decode = [shape.num_decode_rows for shape in graph_shapes(32) if not shape.num_chunks]
    num_mixed = len(graph_shapes(32)) - len(decode)
    assert output_bytes(32, 1000, 2) == (sum(decode) + 32 * num_mixed) * 2000


def test_a_larger_shape_stands_in_where_it_is_clearly_faster() -> None:
    slow, fast, faster = GraphShape(256, 64, 192), GraphShape(256, 64, 256), GraphShape(256, 64, 320)
    fewer_rows, near = GraphShape(128, 64, 512), GraphShape(256, 64, 64)
    times = {near: 9.8, slow: 13.0, fast: 10.0, faster: 9.7, fewer_rows: 1.0}

    assert stand_ins(times) == {slow: faster, fast: faster}


def test_no_shape_is_replaced_where_time_grows_with_size() -> None:
    times = {GraphShape(64, 64, tokens): float(tokens) for tokens in (64, 128, 192)}
    assert stand_ins(times) == {}
