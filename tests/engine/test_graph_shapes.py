"""Which shapes are captured, and what they need: no device is involved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_worker.engine import cuda_graphs
from scheduler_worker.engine.attention.capturable import GraphShape
from scheduler_worker.engine.cuda_graphs import StepGraphs, graph_shapes, largest_shape, output_bytes


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


def shape_for(num_slots: int, num_decodes: int, num_chunks: int, num_chunk_tokens: int) -> GraphShape | None:
    """What an engine of so many slots would run such a step in."""
    graphs: Any = StepGraphs.__new__(StepGraphs)
    graphs._decode_buckets = cuda_graphs._decode_buckets(num_slots)
    graphs._row_buckets = cuda_graphs._row_buckets(num_slots)
    graphs._chunk_buckets = {rows: cuda_graphs._chunk_buckets(rows, num_slots) for rows in graphs._row_buckets}
    attention = SimpleNamespace(num_decode_rows=num_decodes, num_rows=num_decodes + num_chunks)
    batch: Any = SimpleNamespace(attention=attention, input_ids=range(num_decodes + num_chunk_tokens))
    return graphs._shape_for(batch)


@given(data=st.data(), num_slots=st.integers(1, 700))
def test_every_step_runs_in_a_captured_shape_that_holds_it_or_in_none(data: st.DataObject, num_slots: int) -> None:
    num_chunks = data.draw(st.integers(0, min(num_slots, 70)), "chunks")
    num_decodes = data.draw(st.integers(0 if num_chunks else 1, num_slots - num_chunks), "decodes")
    num_tokens = data.draw(st.integers(num_chunks, 2100), "tokens") if num_chunks else 0
    shape = shape_for(num_slots, num_decodes, num_chunks, num_tokens)

    largest = largest_shape(num_slots)
    if num_chunks > largest.num_chunks or num_tokens > largest.num_chunk_tokens:
        assert shape is None
        return
    assert shape in graph_shapes(num_slots)
    assert shape.num_decode_rows >= num_decodes
    assert shape.num_chunks >= num_chunks
    assert shape.num_chunk_tokens >= num_tokens
    assert cuda_graphs._num_rows(shape, num_slots) >= num_decodes + num_chunks


def test_a_step_that_just_fits_is_not_padded() -> None:
    assert shape_for(256, 200, 2, 192) == GraphShape(256, 64, 256)
    assert shape_for(256, 192, 2, 192) == GraphShape(192, 64, 192)
    assert shape_for(256, 64, 0, 0) == GraphShape(64)
