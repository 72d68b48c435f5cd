"""The reader of an output stream: other work has its turn between rows, and what was recorded can be dropped."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any

from controlplane.gateway.outputs import TURN_S, OutputReader
from scheduler_worker.protocol.messages import Frame, FrameRow, encode

NUM_ROWS = 40
ROW_S = TURN_S / 4


class OneEntry:
    """A Redis whose stream holds one frame."""

    def __init__(self, *rows: FrameRow) -> None:
        frame = Frame(worker="w", step=1, published_at=0.0, rows=rows)
        self._reply = [[b"stream", [(b"7-0", {b"frame": encode(frame)})]]]
        self.trimmed_to: str | None = None

    async def xread(self, *_: Any, **__: Any) -> Any:
        return self._reply

    async def xtrim(self, _: str, minid: str, approximate: bool) -> None:
        self.trimmed_to = minid


def row(number: int, finish: str = "") -> FrameRow:
    return FrameRow(request_id=f"r{number}", attempt=0, offset=0, token_ids=(5,), finish=finish)


async def test_rows_are_taken_in_order_and_other_work_has_its_turn_between_them() -> None:
    seen: list[str] = []

    def take(_: Frame, row: FrameRow) -> bool:
        time.sleep(ROW_S)
        seen.append(row.request_id)
        return True

    client: Any = OneEntry(*(row(number) for number in range(NUM_ROWS)))
    reader = OutputReader("default", "g", client, take, lambda _: None)
    num_seen_at_turns: list[int] = []

    async def other_work() -> None:
        while len(seen) < NUM_ROWS:
            num_seen_at_turns.append(len(seen))
            await asyncio.sleep(0)

    await asyncio.gather(reader.read_once(), other_work())
    assert seen == [f"r{number}" for number in range(NUM_ROWS)]
    assert max(b - a for a, b in pairwise(num_seen_at_turns)) < NUM_ROWS / 2


async def test_a_request_that_was_recorded_before_its_last_row_holds_no_entry_back() -> None:
    def drops(_: Frame, row: FrameRow) -> bool:
        reader.recorded(row.request_id)
        return True

    client: Any = OneEntry(row(1, finish="cancelled"))
    reader = OutputReader("default", "g", client, drops, lambda _: None)
    await reader.read_once()
    reader._last_id = "9-0"
    await reader.trim()
    assert client.trimmed_to == "9-0"


async def test_a_row_that_waits_for_its_record_keeps_its_entry() -> None:
    client: Any = OneEntry(row(1, finish="stop"))
    reader = OutputReader("default", "g", client, lambda *_: True, lambda _: None)
    await reader.read_once()
    reader._last_id = "9-0"
    await reader.trim()
    assert client.trimmed_to == "7-0"
