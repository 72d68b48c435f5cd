"""What the courier sends after Redis refused a step: exactly what is missing."""

from __future__ import annotations

from scheduler_worker.protocol.messages import FrameRow, TokenLogprobs
from scheduler_worker.protocol.scripts import Published
from scheduler_worker.worker.courier import OutgoingRow, apart, corrected

OUTPUT = [10, 11, 12, 13, 14]


def row(request_id: str, offset: int, *tokens: int, finish: str = "") -> OutgoingRow:
    logprobs = tuple(TokenLogprobs(token, -1.0) for token in tokens)
    made = FrameRow(
        request_id=request_id, attempt=0, offset=offset, token_ids=tokens, finish=finish, logprobs=logprobs
    )
    return OutgoingRow("g1", made, OUTPUT)


def sent(rows: list[OutgoingRow], outcome: Published) -> list[tuple[str, int, tuple[int, ...], str]]:
    return [
        (one.row.request_id, one.row.offset, one.row.token_ids, one.row.finish)
        for one in corrected(rows, outcome)
    ]


def test_a_lost_row_is_left_out_and_the_others_stay() -> None:
    rows = [row("a", 3, 13), row("b", 3, 13)]
    assert sent(rows, Published(lost=("a",))) == [("b", 3, (13,), "")]


def test_a_row_that_was_stored_already_is_left_out() -> None:
    assert sent([row("a", 3, 13)], Published(stored={"a": 4})) == []


def test_the_end_of_a_stored_row_is_still_said() -> None:
    assert sent([row("a", 3, 13, finish="stop")], Published(stored={"a": 4})) == [("a", 4, (), "stop")]


def test_a_row_begins_after_what_is_stored() -> None:
    assert sent([row("a", 3, 13, 14)], Published(stored={"a": 4})) == [("a", 4, (14,), "")]


def test_tokens_that_redis_lost_are_sent_again() -> None:
    assert sent([row("a", 3, 13, 14)], Published(stored={"a": 1})) == [("a", 1, (11, 12, 13, 14), "")]


def test_log_probabilities_stay_with_their_tokens() -> None:
    (moved,) = corrected([row("a", 3, 13, 14)], Published(stored={"a": 4}))
    assert [one.token_id for one in moved.row.logprobs] == [14]


def test_two_rows_of_a_request_are_sent_one_after_the_other() -> None:
    """Redis compares each with what it had before them all, and so would take the second for one that lost tokens."""
    rows = [row("a", 3, 13), row("b", 3, 13), row("a", 4, 14), row("c", 0, 10)]
    assert [[(one.row.request_id, one.row.offset) for one in each] for each in apart(rows)] == [
        [("a", 3), ("b", 3), ("c", 0)],
        [("a", 4)],
    ]
    assert list(apart([])) == []
