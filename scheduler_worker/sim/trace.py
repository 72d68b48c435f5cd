"""Recorded traffic: three CSV formats, read whole or refused with the line that is wrong.

| format | header |
|---|---|
| ours | `arrival_s,input_tokens,output_tokens` and, in any order, `class`, `tenant`, `block_hashes` |
| Azure LLM inference trace | `TIMESTAMP,ContextTokens,GeneratedTokens` |
| VTC arena | `arrival_s,client_id,input_tokens,output_tokens` |

`block_hashes` are integers separated by spaces, one per full block of the prompt.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

OURS: Final = frozenset({"arrival_s", "input_tokens", "output_tokens"})
OURS_OPTIONAL: Final = frozenset({"class", "tenant", "block_hashes"})
AZURE: Final = frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"})
ARENA: Final = frozenset({"arrival_s", "client_id", "input_tokens", "output_tokens"})


class MalformedTrace(ValueError):
    """A trace that cannot be used: the file, the line, what is wrong and what would be right."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}:{line}: {problem}")
        self.path = path
        self.line = line


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace. `arrival_s` counts from the trace's start; an empty class is not yet assigned. It waits
    in the queue `enqueue_s` after its arrival, at which it was let in. `max_tokens` is what its client allowed, where
    that is known."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    class_id: str = ""
    tenant: str = "default"
    block_hashes: tuple[int, ...] = ()
    enqueue_s: float = 0.0
    max_tokens: int | None = None
    tenant_weight: float = 1.0


Row = dict[str, str]


def read_trace(path: Path) -> list[Request]:
    """All requests, in order of arrival; raises `MalformedTrace` at the first row that is wrong."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        parse = _parser(path, frozenset(reader.fieldnames or ()))
        requests = list(_parse_rows(path, reader, parse))
    if not requests:
        raise MalformedTrace(path, 1, "no requests after the header")
    return _from_zero(requests)


def _parser(path: Path, header: frozenset[str]) -> Callable[[Row], Request]:
    if header == AZURE:
        return _azure_row
    if header == ARENA:
        return _arena_row
    if header >= OURS and header <= OURS | OURS_OPTIONAL:
        return _our_row
    known = "; ".join(",".join(sorted(columns)) for columns in (OURS, AZURE, ARENA))
    raise MalformedTrace(path, 1, f"the header {','.join(sorted(header))} is none of: {known}")


def _parse_rows(
    path: Path, reader: csv.DictReader[str], parse: Callable[[Row], Request]
) -> Iterator[Request]:
    for row in reader:
        if None in row or None in row.values():
            raise MalformedTrace(
                path, reader.line_num, "the row has another number of columns than the header"
            )
        try:
            yield parse(row)
        except ValueError as error:
            raise MalformedTrace(path, reader.line_num, str(error)) from error


def _our_row(row: Row) -> Request:
    return Request(
        arrival_s=_seconds("arrival_s", row["arrival_s"]),
        num_prompt_tokens=_count("input_tokens", row["input_tokens"]),
        num_output_tokens=_count("output_tokens", row["output_tokens"]),
        class_id=row.get("class", ""),
        tenant=row.get("tenant") or "default",
        block_hashes=tuple(int(one) for one in row.get("block_hashes", "").split()),
    )


def _arena_row(row: Row) -> Request:
    return Request(
        arrival_s=_seconds("arrival_s", row["arrival_s"]),
        num_prompt_tokens=_count("input_tokens", row["input_tokens"]),
        num_output_tokens=_count("output_tokens", row["output_tokens"]),
        tenant=row["client_id"] or "default",
    )


def _azure_row(row: Row) -> Request:
    stamp = row["TIMESTAMP"]
    try:
        instant = datetime.fromisoformat(stamp[:26])
    except ValueError:
        raise ValueError(
            f"TIMESTAMP is {stamp!r}; a date and time like 2023-11-16 18:15:46.68 is needed"
        ) from None
    return Request(
        arrival_s=(instant - datetime(1970, 1, 1)).total_seconds(),
        num_prompt_tokens=_count("ContextTokens", row["ContextTokens"]),
        num_output_tokens=_count("GeneratedTokens", row["GeneratedTokens"]),
    )


def _count(column: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{column} is {text!r}; a whole number of 1 or more is needed")
    return int(text)


def _seconds(column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{column} is {text!r}; seconds from the start, 0 or more, are needed")
    return value


def _from_zero(requests: Iterable[Request]) -> list[Request]:
    ordered = sorted(requests, key=lambda one: one.arrival_s)
    start = ordered[0].arrival_s
    return [_moved(one, one.arrival_s - start) for one in ordered]


def _moved(one: Request, arrival_s: float) -> Request:
    return Request(
        arrival_s, one.num_prompt_tokens, one.num_output_tokens, one.class_id, one.tenant, one.block_hashes
    )
