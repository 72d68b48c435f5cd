"""One answer from rows: duplicates, old attempts, gaps, stops, counts."""

from __future__ import annotations

import pytest

from controlplane.gateway.answer import Answer, AnswerRules, Taken
from controlplane.gateway.tokenizer import TextModel
from scheduler_worker.protocol.messages import FrameRow, TokenLogprobs

TEXT = "The workers speak tokens."


def ids(model: TextModel, text: str = TEXT) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(text).ids)


def answer(model: TextModel, **rules: object) -> Answer:
    return Answer(model.vocabulary, AnswerRules(**rules), model.eos_ids)


def row(tokens: tuple[int, ...] = (), offset: int = 0, attempt: int = 0, **fields: object) -> FrameRow:
    return FrameRow(request_id="r", attempt=attempt, offset=offset, token_ids=tokens, **fields)


def test_rows_of_single_tokens_make_the_text(tiny_model: TextModel) -> None:
    one = answer(tiny_model)
    for offset, token in enumerate(ids(tiny_model)):
        one.take(row((token,), offset))
    assert one.text == TEXT


def test_a_row_that_comes_twice_counts_once(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens))
    assert one.take(row(tokens)) is Taken.OLD
    assert one.text == TEXT


def test_a_row_that_overlaps_adds_only_what_is_new(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens[:4]))
    one.take(row(tokens[2:], offset=2))
    assert one.text == TEXT


def test_a_row_of_an_older_attempt_is_dropped(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens[:2]))
    one.requeued(attempt=1)
    assert one.take(row(tokens[2:3], offset=2, attempt=0)) is Taken.OLD
    assert one.num_received == 2


def test_the_next_attempt_goes_on_where_the_last_ended(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens[:2]))
    one.requeued(attempt=1)
    one.take(row(tokens[2:], offset=2, attempt=1))
    assert one.text == TEXT


def test_a_gap_is_reported_and_changes_nothing(tiny_model: TextModel) -> None:
    one = answer(tiny_model)
    assert one.take(row(ids(tiny_model), offset=3)) is Taken.GAP
    assert one.num_received == 0


def test_published_tokens_fill_a_gap(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens[:1]))
    one.fill(tokens[:5])
    one.take(row(tokens[5:], offset=5))
    assert one.text == TEXT


def test_the_end_of_sequence_token_counts_but_is_not_shown(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row((*tokens, *tiny_model.eos_ids), finish="stop"))
    assert (one.text, one.num_output_tokens, one.finish_reason) == (TEXT, len(tokens) + 1, "stop")


def test_a_stop_string_ends_the_answer_before_the_workers_last_row(tiny_model: TextModel) -> None:
    one = answer(tiny_model, stop=("speak",))
    one.take(row(ids(tiny_model)))
    assert (one.text, one.finish_reason, one.closed) == ("The workers ", "stop", False)


def test_the_workers_last_row_closes_an_answer_that_a_stop_string_ended(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model, stop=("speak",)), ids(tiny_model)
    one.take(row(tokens))
    one.take(row((), offset=len(tokens), finish="cancelled"))
    assert (one.closed, one.finish_reason) == (True, "stop")


def test_tokens_after_a_stop_string_are_not_counted(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model, stop=("The",)), ids(tiny_model)
    one.take(row(tokens))
    assert one.num_output_tokens < len(tokens)


def test_stop_strings_wait_for_min_tokens(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model, stop=("The",), min_tokens=5), ids(tiny_model)
    one.take(row(tokens, finish="length"))
    assert one.text == TEXT


def test_half_a_stop_string_at_the_end_is_shown(tiny_model: TextModel) -> None:
    one = answer(tiny_model, stop=("tokens. And",))
    one.take(row(ids(tiny_model), finish="length"))
    assert one.text == TEXT


def logprobs(tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
    return tuple(TokenLogprobs(token, -0.5) for token in tokens)


def test_logprobs_come_with_the_text_that_they_are_about(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model, wants_logprobs=True), ids(tiny_model)
    one.take(row(tokens, logprobs=logprobs(tokens), finish="length"))
    _, entries = one.read()
    assert [entry.logprobs.token_id for entry in entries] == list(tokens)


def test_logprobs_of_a_stop_string_are_not_shown(tiny_model: TextModel) -> None:
    one, tokens = answer(tiny_model, wants_logprobs=True, stop=(" speak",)), ids(tiny_model)
    one.take(row(tokens, logprobs=logprobs(tokens)))
    text, entries = one.read()
    assert text == "The workers"
    assert all(entry.at < len(text) for entry in entries)


@pytest.mark.parametrize("finish", ["length", "stop", "cancelled", "failed"])
def test_rows_after_the_last_are_dropped(tiny_model: TextModel, finish: str) -> None:
    one, tokens = answer(tiny_model), ids(tiny_model)
    one.take(row(tokens[:2], finish=finish))
    assert one.take(row(tokens[2:], offset=2)) is Taken.OLD
