"""Every decision of the core in one sentence, as DESIGN.md says them."""

from __future__ import annotations

import re

import pytest

from scheduler_worker.core.plan import Reason, WaitReason
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.reasons import (
    NO_WORKER,
    ROOM,
    SENTENCES,
    WAIT_REASONS,
    Wait,
    duration,
    render,
    waiting,
)


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


# Why a request waits


def why(
    reason: str, num_ahead: int | None = 0, got: float | None = None, due: float | None = None, **numbers: float | str
) -> str:
    return " ".join(waiting(Wait("medium", "team-b", reason, num_ahead, numbers, got, due)))


def test_every_reason_to_wait_has_a_sentence_in_the_cores_order() -> None:
    assert (*(reason.value for reason in WaitReason), NO_WORKER) == WAIT_REASONS
    assert set(ROOM) == set(WAIT_REASONS)


@pytest.mark.parametrize("reason", [*WAIT_REASONS, "moon_phase"])
@pytest.mark.parametrize("num_ahead", [None, 0, 3])
def test_every_sentence_of_a_wait_is_whole_without_any_number(reason: str, num_ahead: int | None) -> None:
    for text in waiting(Wait("medium", "team-b", reason, num_ahead, {})):
        assert text[0].isupper() or text[0].isdigit()
        assert text.endswith(".")
        assert not re.search(r"[{}]|None|  | [,.:]|[:,]\.", text)


def test_a_tenant_that_had_more_than_its_share_waits_for_the_other() -> None:
    text = why(
        "all_slots", 2, 0.61, 0.5, num_running=8, holders="5 with high and 3 with medium",
        first_tenant="team-a", num_first_tenant=2, tenant_turn="turn", lead_tokens=812.4,
    )  # fmt: skip
    assert text == (
        "All 8 slots are busy, 5 with high and 3 with medium. team-a and team-b share medium; team-b used 61 % of "
        "the class's tokens in the last minute against 50 %, so team-a goes first."
    )


def test_a_share_that_does_not_say_so_is_not_blamed() -> None:
    text = why("all_slots", 1, 0.4, 0.5, num_running=1, first_tenant="team-a", tenant_turn="turn", lead_tokens=812.4)
    assert text == "The one slot is busy. team-a goes first: by weight, team-b has had 812 tokens more of medium."


def test_a_rescue_goes_first_for_its_objective() -> None:
    text = why("batch_limit", 3, num_running=6, first_class="high", num_first_class=3, class_turn="rescue")
    assert text == (
        "All 6 slots of the batch limit are busy. "
        "3 requests of high go first: its TTFT objective is near and can still be met."
    )


def test_free_slots_come_with_the_reason_why_they_stay_free() -> None:
    assert why("no_blocks", 0, num_free_slots=4, num_blocks=14) == (
        "It lacks 14 blocks of KV cache, though 4 slots are free. It is next in line."
    )
    assert why("not_claimed", 0, num_free_slots=4) == (
        "Not claimed yet: 4 slots are free, and a worker claims it before one of its next steps."
    )


def test_a_tenants_own_requests_go_first() -> None:
    assert why("all_slots", 3, num_running=8) == "All 8 slots are busy. 3 of team-b's own requests go first."


def test_slots_that_are_free_and_claimed_are_told_apart_from_busy_ones() -> None:
    assert why("batch_limit", 0, num_running=3, num_free_slots=1).startswith(
        "3 of 4 slots of the batch limit are busy; the other is claimed already."
    )
