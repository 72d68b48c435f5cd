"""Tokens to text, piece by piece, against the decoding of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from controlplane.gateway.detokenizer import REPLACEMENT, Detokenizer, Vocabulary
from controlplane.gateway.tokenizer import load_text_model
from tests.gateway.tiny_model import byte_fallback_tokenizer, byte_level_tokenizer, word_piece_tokenizer

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
WORD_PIECE = word_piece_tokenizer()
EMOJI = "naïve 你好 🙂🚀 Grüße"


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push([one]) for one in ids), detokenizer.flush()]


def one_by_one(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "".join(pieces(Vocabulary(tokenizer).detokenizer(), ids))


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_byte_level_tokens_come_out_as_the_whole_decodes(ids: list[int]) -> None:
    assert one_by_one(BYTE_LEVEL, ids) == BYTE_LEVEL.decode(ids)


@given(st.lists(st.integers(0, WORD_PIECE.get_vocab_size() - 1), max_size=40))
@settings(max_examples=200, deadline=None)
def test_random_word_pieces_come_out_as_the_whole_decodes(ids: list[int]) -> None:
    assert one_by_one(WORD_PIECE, ids) == WORD_PIECE.decode(ids)


@given(st.text(alphabet="Helo wrd,!üab the你好🙂", max_size=30))
@settings(max_examples=200, deadline=None)
def test_byte_fallback_text_comes_out_as_the_whole_decodes(text: str) -> None:
    ids = BYTE_FALLBACK.encode(text.replace(" ", "\u2581")).ids
    assert one_by_one(BYTE_FALLBACK, ids) == BYTE_FALLBACK.decode(ids)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
def test_no_piece_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(EMOJI.replace(" ", "\u2581") if tokenizer is BYTE_FALLBACK else EMOJI).ids
    assert not any(REPLACEMENT in piece for piece in pieces(Vocabulary(tokenizer).detokenizer(), ids))


def test_an_unfinished_character_becomes_one_replacement_at_the_end() -> None:
    ids = BYTE_LEVEL.encode("🙂").ids
    first_bytes = [BYTE_LEVEL.token_to_id("ð"), BYTE_LEVEL.token_to_id("Ł")]
    assert ids
    assert pieces(Vocabulary(BYTE_LEVEL).detokenizer(), first_bytes) == ["", "", REPLACEMENT]


def test_special_tokens_yield_no_text_and_other_added_tokens_do() -> None:
    ids = [BYTE_LEVEL.token_to_id(name) for name in ("<|im_start|>", "<added word>", "<|im_end|>")]
    assert one_by_one(BYTE_LEVEL, ids) == "<added word>"


def test_ids_beyond_the_vocabulary_yield_no_text() -> None:
    assert one_by_one(BYTE_LEVEL, [10**6, BYTE_LEVEL.token_to_id("a")]) == "a"


def test_an_answer_of_its_own_loses_sentencepieces_leading_space() -> None:
    assert one_by_one(BYTE_FALLBACK, [BYTE_FALLBACK.token_to_id("\u2581Hello")]) == "Hello"


@pytest.mark.parametrize(
    ("tokenizer", "before", "token", "text"),
    [(BYTE_FALLBACK, "\u2581Hello", "\u2581world", " world"), (WORD_PIECE, "hello", "world", " world")],
    ids=["byte-fallback", "word-piece"],
)
def test_a_continuation_keeps_its_leading_space(
    tokenizer: Tokenizer, before: str, token: str, text: str
) -> None:
    detokenizer = Vocabulary(tokenizer).detokenizer(after=[tokenizer.token_to_id(before)])
    assert detokenizer.push([tokenizer.token_to_id(token)]) == text


def test_a_word_piece_that_goes_on_has_no_space() -> None:
    detokenizer = Vocabulary(WORD_PIECE).detokenizer(after=[WORD_PIECE.token_to_id("hello")])
    assert detokenizer.push([WORD_PIECE.token_to_id("##ly")]) == "ly"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK, WORD_PIECE])
def test_every_token_has_bytes_that_logprobs_can_show(tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary(tokenizer)
    assert all(isinstance(vocabulary.token_bytes(one), bytes) for one in range(vocabulary.size))


def test_a_tokens_bytes_are_half_a_character_where_the_token_is() -> None:
    assert Vocabulary(BYTE_LEVEL).token_bytes(BYTE_LEVEL.token_to_id("ð")) == b"\xf0"


@pytest.mark.model
def test_random_tokens_of_the_demo_model_come_out_as_the_whole_decodes(demo_model_dir: Path) -> None:
    model = load_text_model(str(demo_model_dir))

    @given(st.lists(st.integers(0, model.vocabulary.size - 1), max_size=80))
    @settings(max_examples=300, deadline=None)
    def check(ids: list[int]) -> None:
        text = "".join(pieces(model.vocabulary.detokenizer(), ids))
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True)

    check()
