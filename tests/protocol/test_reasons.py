"""Every decision of the core in one sentence, as DESIGN.md says them."""

from __future__ import annotations

import re

import pytest

from scheduler_worker.core.plan import Reason
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.reasons import SENTENCES, duration, render


def event(kind: str, reason: str, class_id: str = "low", **numbers: float | int | str) -> EventRecord:
    return EventRecord(
        at=1.0,
        kind=kind,
        reason=reason,
        request_id="51d0-77",
        class_id=class_id,
        tenant="acme",
        numbers=numbers,
    )


def test_every_reason_of_the_core_has_a_sentence() -> None:
    assert {reason.value for reason in Reason} - {reason for _, reason in SENTENCES} == set()


@pytest.mark.parametrize(("kind", "reason"), SENTENCES)
def test_every_sentence_is_whole_without_any_number(kind: str, reason: str) -> None:
    text = render(EventRecord(at=1.0, kind=kind, reason=reason))
    assert text[0].isupper()
    assert text.endswith(".")
    assert not re.search(r"[{}]|None|  | [,.:]|[:,]\.", text)


def test_a_code_of_a_newer_build_is_shown_as_it_is() -> None:
    assert render(event("moved", "moon_phase")) == "Moved (moon phase)."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.00123, "1.23 ms"),
        (0.0386, "39 ms"),
        (0.9994, "999 ms"),
        (1.0, "1 s"),
        (1.236, "1.24 s"),
        (23.04, "23 s"),
        (59.96, "1 min"),
        (260.0, "4 min 20 s"),
    ],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_preemption_names_who_took_the_room_and_what_the_return_costs() -> None:
    text = render(
        event(
            "preempted",
            "preempted_by_priority",
            by="7f3a-12",
            by_class="high",
            left_s=0.012,
            return_s=0.011,
            swaps=1,
        )
    )
    assert text == (
        "Preempted by 7f3a (high): its TTFT objective was 12 ms away. "
        "This one was the cheapest to bring back: copying its blocks costs 11 ms."
    )


def test_a_rescue_says_where_the_debt_goes() -> None:
    assert render(event("scheduled", "rescue", "high", left_s=0.012)) == (
        "Scheduled ahead of its turn: its TTFT objective was 12 ms away. The debt is booked to high."
    )


def test_an_objective_out_of_reach_is_not_called_near() -> None:
    assert "out of reach since 30 ms" in render(event("scheduled", "rescue", "high", left_s=-0.03))


def test_a_batch_limit_names_the_latency_that_moved_it() -> None:
    text = render(
        event("batch_limit_changed", "itl_above_band", before=56, after=52, itl_s=0.0489, target_s=0.04)
    )
    assert text == "Batch limit 56 → 52: ITL p99 averaged 49 ms, over the 40 ms target."


def test_a_refusal_says_when_to_come_back() -> None:
    text = render(event("rejected", "predicted_wait", predicted_s=74.0, bound_s=60.0, retry_after_s=20.0))
    assert (
        text == "Refused: the predicted wait of 1 min 14 s exceeds low's bound of 1 min. Come back in 20 s."
    )


def test_a_missed_bound_says_how_long_it_waits_and_what_came_between() -> None:
    text = render(
        event(
            "bound_missed",
            "more_urgent_work",
            waited_s=30.01,
            late_s=0.01,
            urgent_tokens=120_000,
            excess_tokens=80_000,
            margin_tokens=20_000,
        )
    )
    assert text == (
        "51d0 (low) has waited 30 s, 10 ms beyond its bound: more urgent requests brought 120,000 tokens "
        "meanwhile, 80,000 tokens more than foreseen; the margin was 20,000 tokens."
    )


def test_a_missed_bound_of_a_parked_request_counts_from_its_preemption() -> None:
    text = render(event("bound_missed", "worker_slowed", parked_s=30.5, late_s=0.5, slowness=1.4))
    assert text == (
        "51d0 (low) has been parked for 30.5 s, 500 ms beyond its bound: "
        "steps took 1.4 × their predicted time."
    )


def test_a_refused_preemption_says_whose_rule_forbade_it() -> None:
    text = render(event("not_preempted", "class_may_not_yield", "high", left_s=0.012, num_rows=8))
    assert text == (
        "Nobody yielded to 51d0 (high): its TTFT objective was 12 ms away, "
        "8 running sequences may not be preempted under this policy."
    )
