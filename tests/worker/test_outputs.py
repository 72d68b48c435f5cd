"""What the courier's process makes of a step: rows for gateways, each beginning where its request's output ends."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Iterator

import pytest

from scheduler_worker.protocol.messages import FrameRow, Header, Payload, SamplingParams
from scheduler_worker.protocol.scripts import Claimed
from scheduler_worker.worker.courier_process import Channel, Going, Publish, _Outputs
from scheduler_worker.worker.inbox import ClaimsHeld, ClaimsLost, ClaimsSettled


def claimed(request_id: str, attempt: int = 0, *generated: int) -> Claimed:
    header = Header(
        request_id=request_id,
        class_id="high",
        tenant="a",
        gateway=f"gateway of {request_id}",
        arrived_at=0.0,
        num_prompt_tokens=3,
        max_tokens=9,
        attempt=attempt,
    )
    payload = Payload(request_id=request_id, token_ids=b"", sampling=SamplingParams())
    return Claimed(header, payload, array("I", generated).tobytes())


@pytest.fixture
def channel() -> Iterator[Channel]:
    """To a loop that reads nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours)


def outputs(channel: Channel, *won: Claimed) -> _Outputs:
    made = _Outputs(channel)
    made.put(ClaimsSettled(tuple(one.header.request_id for one in won), won))
    return made


def going(*rows: tuple[str, int, int]) -> Going:
    made = Going.nobody()
    for row in rows:
        made.add(*row)
    return made


def sent(held: _Outputs, step: Publish) -> list[tuple[str, str, int, tuple[int, ...], str]]:
    return [
        (one.gateway, one.row.request_id, one.row.offset, one.row.token_ids, one.row.finish)
        for one in held.outgoing(step)
    ]


def ending(request_id: str, attempt: int, *tokens: int) -> FrameRow:
    return FrameRow(request_id=request_id, attempt=attempt, offset=0, token_ids=tokens, finish="stop")


def test_each_row_begins_where_the_output_of_its_request_ends(channel: Channel) -> None:
    held = outputs(channel, claimed("a"), claimed("b", 1, 7, 8))

    assert sent(held, Publish(1, [], going(("a", 0, 5), ("b", 1, 9)))) == [
        ("gateway of a", "a", 0, (5,), ""),
        ("gateway of b", "b", 2, (9,), ""),
    ]
    assert sent(held, Publish(2, [ending("b", 1, 4)], going(("a", 0, 6)))) == [
        ("gateway of a", "a", 1, (6,), ""),
        ("gateway of b", "b", 3, (4,), "stop"),
    ]


def test_corrections_find_the_whole_output(channel: Channel) -> None:
    held = outputs(channel, claimed("b", 0, 7, 8))
    held.outgoing(Publish(1, [], going(("b", 0, 9))))
    (last,) = held.outgoing(Publish(2, [ending("b", 0, 4)], Going.nobody()))
    assert last.tokens == [7, 8, 9, 4]


def test_nothing_is_said_of_what_is_no_longer_held(channel: Channel) -> None:
    held = outputs(channel, claimed("a"), claimed("b"), claimed("c"), claimed("d"))
    held.put(ClaimsLost({"a": 0}))
    held.put(ClaimsHeld({"c": 0, "d": 1}))
    step = Publish(1, [ending("a", 0, 1), ending("c", 0, 2)], going(("b", 0, 3), ("d", 0, 4)))

    assert [row[1] for row in sent(held, step)] == ["c"]
    assert sent(held, Publish(2, [ending("c", 0, 5)], Going.nobody())) == []


def test_a_claim_that_lapsed_is_forgotten_once_it_is_won_again(channel: Channel) -> None:
    held = outputs(channel, claimed("a", 0, 7), claimed("b"))
    held.put(ClaimsSettled(("a",), (claimed("a", 2, 7, 8),)))

    assert sent(held, Publish(1, [], going(("a", 0, 1), ("a", 2, 2), ("b", 0, 3)))) == [
        ("gateway of a", "a", 2, (2,), ""),
        ("gateway of b", "b", 0, (3,), ""),
    ]


def test_rows_of_one_request_can_be_taken_back() -> None:
    rows = going(("a", 0, 1), ("b", 1, 2), ("c", 2, 3))
    rows.remove("b")
    rows.remove("nobody")
    assert rows == going(("a", 0, 1), ("c", 2, 3))
