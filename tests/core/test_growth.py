"""What growth and answers are reckoned with."""

from __future__ import annotations

import pytest

from scheduler_worker.core.growth import Growth
from scheduler_worker.core.output_lengths import PRIOR_TOKENS, OutputLengths


def observed(*lengths: int, at_limit: bool = False) -> OutputLengths:
    known = OutputLengths()
    for length in lengths:
        known.observe(length, at_limit)
    return known


def test_a_prior_holds_until_sixteen_answers_have_ended() -> None:
    assert observed(*range(15)).p90 == PRIOR_TOKENS
    assert observed(*range(1, 17)).p90 == 15


def test_the_expectation_is_the_p90_and_never_more_than_allowed() -> None:
    known = observed(*range(1, 101))
    assert (known.expected(1000), known.expected(40)) == (90, 40)


def test_the_mean_is_a_mean_of_the_last_answers_and_never_more_than_allowed() -> None:
    known = observed(*[1000] * 512, *range(1, 513))
    assert (known.mean(1000), known.mean(40)) == (256, 40)


def test_the_mean_is_the_limit_where_answers_run_to_it_and_the_prior_before_any_ended() -> None:
    assert observed(*[50] * 20, at_limit=True).mean(700) == 700
    assert OutputLengths().mean(100_000) == PRIOR_TOKENS


def test_only_the_last_answers_count() -> None:
    known = observed(*[1000] * 512, *[10] * 512)
    assert known.p90 == 10


def test_where_answers_run_to_their_limit_the_limit_is_expected() -> None:
    assert observed(*[50] * 20, at_limit=True).expected(700) == 700


def test_rows_of_one_length_peak_together() -> None:
    """Two rows of 16 tokens with 16 to come: 32 tokens each, and a block that each may just have begun."""
    assert Growth(16, [(16, 16)]).peak_with(16, 16) == pytest.approx((64 + 2 * 15) / 16)


def test_a_row_that_ends_early_leaves_its_place() -> None:
    """One of 32 with 160 to come, one of 64 with 16 to come: at the first end 32 + 64 + 2 · 16 tokens, at the last
    32 + 160: reserving both at once would have been 272."""
    assert Growth(16, [(160, 32)]).peak_with(16, 64) == pytest.approx(max(128 + 30, 192 + 15) / 16)


def test_asking_changes_nothing() -> None:
    growth = Growth(16, [(160, 32)])
    assert growth.peak_with(16, 64) == growth.peak_with(16, 64)


def test_a_row_that_joined_counts_from_then_on() -> None:
    growth = Growth(16)
    growth.add(160, 32)
    assert growth.peak_with(0, 16) == Growth(16, [(160, 32)]).peak_with(0, 16)
