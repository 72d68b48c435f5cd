"""A trace is read whole, or refused with the line that is wrong and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler_worker.sim.trace import MalformedTrace, Request, read_trace

OURS = "arrival_s,class,tenant,input_tokens,output_tokens\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_format_keeps_class_tenant_and_counts(tmp_path: Path) -> None:
    path = write(tmp_path, OURS + "0.5,high,acme,12,34\n")
    assert read_trace(path) == [Request(0.0, 12, 34, "high", "acme")]


def test_class_and_tenant_are_optional(tmp_path: Path) -> None:
    path = write(tmp_path, "arrival_s,input_tokens,output_tokens\n0,12,34\n")
    assert read_trace(path) == [Request(0.0, 12, 34, "", "default")]


def test_block_hashes_are_read_as_integers(tmp_path: Path) -> None:
    path = write(tmp_path, "arrival_s,input_tokens,output_tokens,block_hashes\n0,32,1,7 9\n")
    assert read_trace(path)[0].block_hashes == (7, 9)


def test_arrivals_count_from_the_first_one_and_are_sorted(tmp_path: Path) -> None:
    path = write(tmp_path, "arrival_s,input_tokens,output_tokens\n12,1,1\n10,2,2\n")
    assert [(one.arrival_s, one.num_prompt_tokens) for one in read_trace(path)] == [(0.0, 2), (2.0, 1)]


def test_the_azure_format_is_read_as_it_is(tmp_path: Path) -> None:
    rows = ("2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.6805900,1,2")
    text = "\n".join(("TIMESTAMP,ContextTokens,GeneratedTokens", *rows, ""))
    assert read_trace(write(tmp_path, text)) == [Request(0.0, 374, 44), Request(4.0, 1, 2)]


def test_the_arena_format_takes_the_client_as_tenant(tmp_path: Path) -> None:
    text = "arrival_s,client_id,input_tokens,output_tokens\n0.0,13,5,6\n"
    assert read_trace(write(tmp_path, text)) == [Request(0.0, 5, 6, "", "13")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("0.1,high,acme,12", "another number of columns"),
        ("0.1,high,acme,12,34,5", "another number of columns"),
        ("0.1,high,acme,zero,34", "input_tokens is 'zero'"),
        ("0.1,high,acme,0,34", "input_tokens is '0'"),
        ("0.1,high,acme,12,-1", "output_tokens is '-1'"),
        ("soon,high,acme,12,34", "arrival_s is 'soon'"),
        ("nan,high,acme,12,34", "arrival_s is 'nan'"),
        ("-1,high,acme,12,34", "arrival_s is '-1'"),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path: Path, row: str, problem: str) -> None:
    path = write(tmp_path, OURS + "0.0,high,acme,1,1\n" + row + "\n")
    with pytest.raises(MalformedTrace, match=problem) as refused:
        read_trace(path)
    assert refused.value.line == 3


def test_an_unknown_header_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MalformedTrace, match="ContextTokens,GeneratedTokens,TIMESTAMP"):
        read_trace(write(tmp_path, "when,what\n1,2\n"))


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedTrace, match="no requests"):
        read_trace(write(tmp_path, OURS))
