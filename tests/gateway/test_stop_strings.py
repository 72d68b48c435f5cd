"""Stop strings are found across pieces and never shown, not even in part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.stop_strings import StopStrings


def shown(stops: list[str], pieces: list[str]) -> str:
    finder = StopStrings(stops)
    return "".join(finder.push(piece) for piece in pieces) + finder.flush()


def cut(text: str, stops: list[str]) -> str:
    """The definition: everything before the earliest stop string."""
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def test_a_stop_string_in_one_piece_ends_the_text_before_it() -> None:
    assert shown(["END"], ["all of this END not this"]) == "all of this "


def test_a_stop_string_across_three_pieces_is_found() -> None:
    assert shown(["<stop>"], ["text <s", "to", "p> more"]) == "text "


def test_a_tail_that_only_begins_a_stop_string_is_shown_once_that_is_clear() -> None:
    finder = StopStrings(["###"])
    assert [finder.push("a#"), finder.push("#"), finder.push("b")] == ["a", "", "##b"]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert shown(["world", "lo w"], ["hello world"]) == "hel"


def test_nothing_is_shown_after_the_stop() -> None:
    finder = StopStrings(["x"])
    finder.push("axb")
    assert finder.push("more") == ""


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert shown(["abc"], ["xa", "b"]) == "xab"


@given(
    st.lists(st.text("ab#", max_size=5), max_size=12),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=4),
)
def test_however_the_text_is_cut_into_pieces_the_result_is_that_of_the_whole(
    pieces: list[str], stops: list[str]
) -> None:
    finder = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += finder.push(piece)
        if finder.stopped:
            break
    whole = "".join(pieces)
    assert text + finder.flush() in _possible(whole, pieces, stops)


def _possible(whole: str, pieces: list[str], stops: list[str]) -> set[str]:
    """The cut of the text as far as it had come when a stop string was complete."""
    seen = ""
    for piece in pieces:
        seen += piece
        if cut(seen, stops) != seen:
            return {cut(seen, stops)}
    return {whole}
