"""When a promise counts as broken, since when, and when as kept again."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.telemetry.promise import (
    Counts,
    Open,
    PromiseWindow,
    budget_left,
    burn_rate,
    governing,
    judged,
    replay,
)
from tests.telemetry.builders import T0, ended, first, policy, sample

HIGH = policy().find("high")  # 99 % in 0.1 s and 20 ms
LOW = policy().find("low")  # 90 % in 1 s and 100 ms


def answer(window: PromiseWindow, at: float, ttft_s: float, **fields: Any) -> None:
    """A request from its first token to its end."""
    window.add_first_token(first(at, ttft_s, window.policy.id, **fields))
    window.add_finished(ended(at, ttft_s, class_id=window.policy.id, **fields))


def window_of_low(num_good: int, num_late: int, at: float = 0) -> PromiseWindow:
    window = PromiseWindow(LOW)
    for number in range(num_good + num_late):
        ttft_s = 2.0 if number < num_late else 0.5
        answer(window, at, ttft_s, request_id=str(number))
    return window


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (0.999, "p99"),
        (0.99, "p99"),
        (0.96, "p99"),
        (0.95, "p95"),
        (0.9, "p95"),
        (0.51, "p95"),
        (0.5, "p50"),
        (0.4, "p50"),
    ],
)
def test_the_target_names_the_governing_percentile(target: float, name: str) -> None:
    assert governing(target) == name


@pytest.mark.parametrize(
    ("fields", "late"),
    [
        ({"ttft_s": 0.1, "tpot_s": 0.02}, False),  # at the objective is in time
        ({"ttft_s": 0.11, "tpot_s": 0.01}, True),
        ({"ttft_s": 0.05, "tpot_s": 0.021}, True),
        ({"ttft_s": 0.05, "tpot_s": None}, False),  # one token has no TPOT
        ({"ttft_s": None, "tpot_s": None, "outcome": "failed", "met": False}, True),
        ({"ttft_s": 0.05, "tpot_s": 0.01, "outcome": "cancelled", "met": False}, None),
        ({"ttft_s": 0.05, "tpot_s": 0.01, "met": None}, None),  # not ended
        ({"ttft_s": 0.11, "tpot_s": 0.01, "outcome": "cancelled", "met": None}, True),  # after the miss
        ({"e2e_s": 0.11, "outcome": "cancelled", "met": None}, True),  # given up after the objective
        ({"e2e_s": 0.09, "outcome": "cancelled", "met": None}, None),  # given up before it
    ],
)
def test_a_request_is_late_when_it_misses_either_objective(fields: dict[str, Any], late: bool | None) -> None:
    counts = judged(sample(0, **{"met": True, "outcome": "succeeded", **fields}), HIGH)
    assert (counts and bool(counts.num_late)) is late


def test_a_missed_end_to_end_objective_is_late_too() -> None:
    slo = {"ttft_s": 0.1, "tpot_s": 0.02, "e2e_s": 5, "e2e_target": 0.9}
    one = policy({"id": "high", "rank": 0, "weight": 1, "slo": slo}).find("high")
    assert judged(ended(0, e2e_s=5.1), one) == Counts(num=1, num_late=1)


@pytest.mark.parametrize(("num_late", "is_over"), [(10, False), (11, True)])
def test_closeness_is_over_one_exactly_where_the_attainment_is_below_the_target(
    num_late: int, is_over: bool
) -> None:
    window = window_of_low(num_good=100 - num_late, num_late=num_late)  # p95 is late in both
    assert (window.closeness("ttft")[0] > 1) is is_over


def test_of_halves_without_late_requests_the_one_nearest_its_limit_is_the_closest() -> None:
    window = PromiseWindow(LOW)
    window.add_first_token(first(0, 0.5, "low"))  # half of 1 s
    window.add_finished(ended(0, 0.5, 0.09, "low"))  # nine tenths of 100 ms
    assert window.closeness("tpot") > window.closeness("ttft")


def test_two_late_requests_are_too_few_to_break_a_promise() -> None:
    window = PromiseWindow(HIGH)  # 99 %: of twenty, one late is too many
    for number in range(2):
        answer(window, 0, 2.0, request_id=str(number))
    window.judge(T0 + 1)
    assert window.state("ttft").kept


def test_three_late_requests_break_it_once_twenty_could_not_mend_them() -> None:
    window = window_of_low(num_good=1, num_late=3)  # 17 of 20 would be 85 %, whoever the others are
    window.judge(T0 + 1)
    assert window.state("ttft").broken_since == T0 + 1


def test_late_requests_that_twenty_could_mend_do_not_break_it_yet() -> None:
    one = policy({"id": "low", "rank": 0, "weight": 1, "slo": {"ttft_s": 1, "tpot_s": 1, "target": 0.8}})
    window = PromiseWindow(one.find("low"))
    for number in range(5):
        answer(window, 0, 2.0 if number < 4 else 0.5, request_id=str(number))
    window.judge(T0 + 1)  # 16 of 20 would be 80 %
    assert window.state("ttft").kept


def test_exactly_the_target_keeps_the_promise() -> None:
    window = window_of_low(num_good=18, num_late=2)  # 18 of 20 is 90 %
    window.judge(T0 + 1)
    assert window.state("ttft").kept


def test_one_more_late_request_breaks_it() -> None:
    window = window_of_low(num_good=17, num_late=3)  # 17 of 20 is 85 %
    window.judge(T0 + 1)
    assert not window.state("ttft").kept


def test_a_broken_promise_keeps_its_instant_while_it_stays_broken() -> None:
    window = window_of_low(num_good=17, num_late=3)
    for second in (1, 2, 3):
        window.judge(T0 + second)
    assert window.state("ttft").broken_since == T0 + 1


def test_just_reaching_the_target_again_does_not_mend_it() -> None:
    window = window_of_low(num_good=17, num_late=3)
    window.judge(T0 + 1)
    for number in range(
        10
    ):  # 27 of 30 is 90 %, the target; mended is 90 % + a tenth of the way to 100 %, 91 %
        answer(window, 2, 0.5, request_id=f"more-{number}")
    window.judge(T0 + 2)
    assert not window.state("ttft").kept


def test_reaching_the_target_with_a_margin_mends_it() -> None:
    window = window_of_low(num_good=17, num_late=3)
    window.judge(T0 + 1)
    for number in range(14):  # 31 of 34 is 91.2 %
        answer(window, 2, 0.5, request_id=f"more-{number}")
    window.judge(T0 + 2)
    assert window.state("ttft").kept


def test_a_window_that_ran_empty_is_kept() -> None:
    window = window_of_low(num_good=0, num_late=30)
    window.judge(T0 + 1)
    window.judge(T0 + 300)
    assert window.state("ttft").kept


def test_a_joint_miss_is_blamed_on_the_half_with_more_late_requests() -> None:
    window = PromiseWindow(LOW)
    for number in range(100):  # 6 late by TTFT, 8 others by TPOT: 94 % and 92 %, but 86 % of both
        ttft_s, tpot_s = (2.0 if number < 6 else 0.5), (0.2 if 6 <= number < 14 else 0.05)
        window.add_first_token(first(0, ttft_s, "low", request_id=str(number)))
        window.add_finished(ended(1, ttft_s, tpot_s, "low", request_id=str(number)))
    window.judge(T0 + 2)
    assert (window.state("ttft").kept, window.state("tpot").kept) == (True, False)


def test_other_objectives_begin_the_window_anew() -> None:
    slo = {"ttft_s": 3, "tpot_s": 0.1, "target": 0.9}
    relaxed = policy({"id": "low", "rank": 0, "weight": 1, "slo": slo}).find("low")
    window = window_of_low(num_good=10, num_late=10).under(relaxed, T0 + 1)
    assert (window.counts(), window.begins_at(T0 + 2)) == (Counts(), T0 + 1)


def test_another_target_counts_the_same_requests() -> None:
    slo = {"ttft_s": 1.0, "tpot_s": 0.1, "target": 0.5}
    other = policy({"id": "low", "rank": 0, "weight": 1, "slo": slo}).find("low")
    window = window_of_low(num_good=10, num_late=10).under(other, T0 + 1)
    assert (window.counts().joint, window.begins_at(T0 + 2)) == ((20, 10), None)


def test_a_change_that_the_window_has_left_behind_cuts_it_no_more() -> None:
    assert PromiseWindow(LOW, judged_since=T0).begins_at(T0 + 300) is None


def test_requests_that_wait_past_their_objective_break_a_promise() -> None:
    window = PromiseWindow(LOW)
    window.open = Open(num_overdue=3, num_missed=3)
    window.judge(T0)
    state = window.state("ttft")
    assert (state.kept, state.num_late, state.num_requests, state.attainment) == (False, 3, 3, 0)


def test_a_late_first_token_is_the_miss_that_its_wait_was() -> None:
    waits, begins, ends = PromiseWindow(LOW), PromiseWindow(LOW), PromiseWindow(LOW)
    waits.open = Open(num_overdue=1, num_missed=1)
    begins.open = Open(num_overdue=0, num_missed=1)
    begins.add_first_token(first(1, 1.5, "low"))
    ends.add_first_token(first(1, 1.5, "low"))
    ends.add_finished(ended(2, 1.5, 0.05, "low"))
    assert [window.counts() for window in (waits, begins, ends)] == [Counts(1, 1, 1)] * 3


def test_an_answer_of_a_gateway_that_died_is_late_in_no_figure() -> None:
    window = PromiseWindow(LOW)  # another gateway took it over, and has no time of its first token
    window.add_finished(ended(2, class_id="low", ttft_s=None, tpot_s=None, e2e_s=30, met=None, num_output_tokens=9))
    assert window.counts() == Counts()


def test_an_adopted_request_that_was_given_up_after_tokens_is_late_in_no_figure() -> None:
    window = PromiseWindow(LOW)
    fields = {"ttft_s": None, "tpot_s": None, "outcome": "cancelled", "met": None, "num_output_tokens": 9}
    window.add_finished(ended(2, class_id="low", e2e_s=30, **fields))
    assert window.counts() == Counts()


@pytest.mark.parametrize(("waited_s", "num_late"), [(0.9, 0), (1.1, 1)])
def test_a_miss_stays_one_when_its_request_ends_without_a_token(waited_s: float, num_late: int) -> None:
    window = PromiseWindow(LOW)
    fields = {"ttft_s": None, "tpot_s": None, "outcome": "cancelled", "met": None}
    window.add_finished(ended(2, class_id="low", e2e_s=waited_s, **fields))
    assert (window.counts().num_ttft_late, window.counts().num_late) == (num_late, num_late)


@pytest.mark.parametrize(("num_overdue", "is_over"), [(10, False), (11, True)])
def test_closeness_counts_what_still_waits(num_overdue: int, is_over: bool) -> None:
    window = window_of_low(num_good=100 - num_overdue, num_late=0)
    window.open = Open(num_overdue=num_overdue, num_missed=num_overdue)
    assert (window.closeness("ttft")[0] > 1) is is_over


def test_the_burn_rate_is_the_share_of_late_over_the_share_allowed() -> None:
    assert burn_rate(1000, 88, 0.99) == pytest.approx(8.8)


def test_the_budget_left_is_what_late_requests_have_not_used() -> None:
    assert budget_left(10_000, 62, 0.99) == pytest.approx(1 - 62 / 100)


def test_an_overspent_budget_is_zero() -> None:
    assert budget_left(100, 50, 0.99) == 0


@pytest.mark.parametrize("figure", [burn_rate, budget_left])
def test_without_requests_nothing_is_known(figure: Any) -> None:
    assert figure(0, 0, 0.99) is None


def test_replaying_stored_counts_finds_when_a_promise_broke() -> None:
    good, bad = Counts(10), Counts(10, num_late=5, num_ttft_late=5)
    # At 20 s 20 samples are good; at 30 s 25 of 30 are, 83 %; it broke there.
    rows = [(T0 + 10, good), (T0 + 20, good), (T0 + 30, bad), (T0 + 40, bad)]
    assert replay(rows, 0.9) == {"ttft": T0 + 30}
