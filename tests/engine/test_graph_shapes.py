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
    assert all(shape.num_tokens > 1 for shape in graph_shapes(1))
    assert output_bytes(1, 1, 1) >= 2 * len(graph_shapes(1))


def test_the_logits_of_all_graphs_are_counted_and_none_has_more_rows_than_slots() -> None:
    decode = [shape.num_decode_rows for shape in graph_shapes(32) if not shape.num_chunks]
    num_mixed = len(graph_shapes(32)) - len(decode)
    assert output_bytes(32, 1000, 2) == (sum(decode) + 32 * num_mixed) * 2000


@pytest.mark.parametrize("num_slots", [1, 3, 32, 256, 700, 4000])
def test_there_are_shapes_for_every_step_of_a_full_budget(num_slots: int) -> None:
    """As many tokens of chunks as a graph may hold, whether they leave room for one-token rows or come on top."""
    shapes = [shape for shape in graph_shapes(num_slots) if shape.num_chunks]
    most = largest_shape(num_slots).num_chunk_tokens
    for num_decodes in range(0, num_slots + 1, max(1, num_slots // 50)):
        rows = min(shape.num_decode_rows for shape in shapes if shape.num_decode_rows >= num_decodes)
        beside = [shape.num_chunk_tokens for shape in shapes if shape.num_decode_rows == rows]
        assert max(beside) == most
        if num_decodes <= most:
            fitting = min(tokens for tokens in beside if tokens >= most - num_decodes)
            assert rows + fitting <= most + max(num_slots // 4, 2) or rows > most


def test_totals_are_sizes_that_multiply_fast() -> None:
    totals = {shape.num_tokens for shape in graph_shapes(256) if 384 < shape.num_tokens < 2048}
    assert all(total % 128 == 0 for total in totals)
