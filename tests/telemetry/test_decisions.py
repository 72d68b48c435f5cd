"""Decisions folded, and causes taken only from events."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.telemetry.causes import BrokenHalf, gateway_restarted, rule_of
from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.schema import Verdict
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.reasons import render
from tests.telemetry.builders import T0, ended, event, fold, gateway, load, policy, row, seen, worker


def broken_by(*events: EventRecord) -> Verdict:
    """The verdict when high's TTFT breaks at 100 s and the events happened before or after."""
    one = fold()
    late = tuple(ended(99 + n / 100, 0.5) for n in range(30))
    one.take(worker(100, events=events))
    one.take(gateway(100, finished=late))
    one.tick(T0 + 100)
    one.take(worker(130))
    return seen(one, 130).verdict


def test_similar_events_are_one_line_with_a_count() -> None:
    one = fold()
    events = tuple(event(number, "preempted", "preempted_by_priority", "low") for number in range(39))
    one.take(worker(40, events=events))
    (decision,) = seen(one, 40).decisions
    assert (decision.at, decision.num_like, decision.text) == (T0 + 38, 38, "preempted_by_priority of r38")


def test_only_those_of_the_minute_before_the_newest_are_like_it() -> None:
    one = fold()
    one.take(worker(90, events=tuple(event(at, "resumed", "swapped_in") for at in (1, 25, 40, 85))))
    assert seen(one, 90).decisions[0].num_like == 1  # that at 40; that at 25 is a minute old


def test_other_classes_and_reasons_are_lines_of_their_own_newest_first() -> None:
    one = fold()
    events = (
        event(1, "scheduled", "turn", "high"),
        event(3, "scheduled", "turn", "low"),
        event(2, "scheduled", "rescue", "high"),
    )
    one.take(worker(4, events=events))
    assert [line.at - T0 for line in seen(one, 4).decisions] == [3, 2, 1]


def test_arrivals_and_ordinary_ends_are_no_decisions() -> None:
    one = fold()
    events = (event(1, "queued", "arrived"), event(2, "first_token", "turn"), event(3, "finished", "stopped"))
    one.take(worker(4, events=events))
    assert seen(one, 4).decisions == ()


def test_refusals_of_gateways_are_decisions_too() -> None:
    one = fold()
    one.take(gateway(2, events=(event(1, "rejected", "predicted_wait", "low"),)))
    assert [line.kind for line in seen(one, 2).decisions] == ["rejected"]


def test_decisions_are_forgotten_after_a_quarter_of_an_hour() -> None:
    one = fold()
    one.take(worker(1, events=(event(1, "resumed", "swapped_in"),)))
    one.tick(T0 + 901)
    assert seen(one, 901).decisions == ()


def test_moves_of_the_batch_limit_come_with_the_figures_that_moved_it() -> None:
    one = fold()
    numbers = {"before": 56, "after": 52, "itl_s": 0.0489, "target_s": 0.04}
    one.take(worker(1, events=(event(1, "batch_limit_changed", "itl_above_band", "", numbers=numbers),)))
    (change,) = seen(one, 1).limit_changes
    assert (change.worker, change.before, change.after, change.itl_s, change.target_s) == (
        "gpu0", 56, 52, 0.0489, 0.04,
    )  # fmt: skip


def test_without_an_explaining_event_no_cause_is_given() -> None:
    assert broken_by(event(99, "scheduled", "turn")).causes == ()


def test_an_event_about_the_class_is_its_cause() -> None:
    verdict = broken_by(event(95, "not_preempted", "class_may_not_yield"))
    assert [(cause.at - T0, cause.text) for cause in verdict.causes] == [(95, "class_may_not_yield of r95")]


def test_repeated_causes_are_one_with_a_count() -> None:
    events = [event(95 + n / 2, "not_preempted", "class_may_not_yield") for n in range(38)]
    text = "class_may_not_yield of r95.0 38 like it in the last minute."
    assert [cause.text for cause in broken_by(*events).causes] == [text]


def test_causes_come_in_the_order_of_time() -> None:
    verdict = broken_by(
        event(98, "not_preempted", "past_max_generated"),
        event(96, "out_of_blocks", "no_blocks", "high"),
    )
    assert [cause.at - T0 for cause in verdict.causes] == [96, 98]


@pytest.mark.parametrize(
    "innocent",
    [
        event(95, "out_of_blocks", "no_blocks", "low"),  # another class
        event(30, "out_of_blocks", "no_blocks", "high"),  # long before
        event(95, "preempted", "preempted_by_priority", "low"),  # explains late tokens, of low
        event(95, "batch_limit_changed", "itl_below_band", ""),  # the limit grew
        event(110, "policy_applied", "policy_published", ""),  # after the break
    ],
)
def test_what_does_not_explain_is_no_cause(innocent: EventRecord) -> None:
    assert broken_by(innocent).causes == ()


def test_a_policy_published_just_before_is_a_cause() -> None:
    verdict = broken_by(event(95, "policy_applied", "policy_published", ""))
    assert [cause.at - T0 for cause in verdict.causes] == [95]


def test_a_policy_by_which_the_page_judged_before_the_worker_ran_it_is_a_cause() -> None:
    verdict = broken_by(event(101, "policy_applied", "policy_published", ""))
    assert [cause.at - T0 for cause in verdict.causes] == [101]


def published(at: float, version: int) -> EventRecord:
    return event(at, "policy_applied", "policy_published", "", numbers={"version": version})


def test_of_several_policies_the_newest_before_the_break_is_the_cause() -> None:
    verdict = broken_by(published(80, 4), published(95, 5), published(110, 6))
    assert [cause.at - T0 for cause in verdict.causes] == [95]


def test_two_versions_of_the_policy_are_two_lines_and_two_workers_with_one_are_one() -> None:
    one = fold()
    one.take(worker(4, "gpu0", events=(published(1, 4), published(3, 5))))
    one.take(worker(4, "gpu1", events=(published(3, 5),)))
    assert [(line.at - T0, line.num_like) for line in seen(one, 4).decisions] == [(3, 1), (1, 0)]


def test_a_cause_is_known_for_as_long_as_the_promise_stays_broken() -> None:
    one = fold()
    one.take(worker(95, events=(event(95, "not_preempted", "class_may_not_yield"),)))
    for at in range(100, 2_000, 10):  # events are forgotten after 900 s
        one.take(gateway(at, finished=tuple(ended(at + n / 10, 0.5) for n in range(10))))
        one.take(worker(at))
        one.tick(T0 + at)
    assert [cause.at - T0 for cause in seen(one, 1_991).verdict.causes] == [95]


def test_a_process_that_takes_over_knows_since_when_and_why() -> None:
    before = fold()
    late = tuple(ended(99 + n / 100, 0.5) for n in range(30))
    before.take(worker(95, events=(event(95, "not_preempted", "class_may_not_yield"),)))
    before.take(gateway(100, finished=late))
    before.tick(T0 + 100)
    after = fold()
    after.take(gateway(100, finished=late))
    after.take(worker(130))
    after.resume(before.broken_halves())
    verdict = seen(after, 130).verdict
    assert (verdict.since, [cause.at for cause in verdict.causes]) == (T0 + 100, [T0 + 95])


def test_a_promise_that_recovered_meanwhile_is_not_taken_up_as_broken() -> None:
    one = fold()
    one.take(worker(130))
    one.take(gateway(130, finished=tuple(ended(129 + n / 100, 0.05) for n in range(30))))
    one.resume([BrokenHalf(class_id="high", metric="ttft", since=T0 + 100)])
    assert seen(one, 130).verdict.kind == "kept"


def broken_while_waiting(oldest_wait_s: float, num_running: int, **fields: Any) -> TelemetryFold:
    """high's TTFT, promised in 0.1 s, breaks at 100 s while 4 of it wait."""
    one = fold()
    rows = tuple(row(f"r{n}", "low" if n < 5 else "high") for n in range(num_running))
    waiting = load("high", 4, oldest_wait_s=oldest_wait_s)
    one.take(worker(99, num_running=num_running, rows=rows, classes=(waiting,), **fields))
    one.tick(T0 + 99)
    one.take(worker(100))
    one.take(gateway(100, finished=tuple(ended(99 + n / 100, 0.5) for n in range(30))))
    one.tick(T0 + 100)
    return one


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"batch_limit": 8}, "batch_limit"),  # of the worker's 16 slots
        ({"batch_limit": 8, "num_slots": 8}, "all_slots"),
    ],
)
def test_busy_slots_explain_why_a_class_waited(fields: dict[str, Any], text: str) -> None:
    (cause,) = seen(broken_while_waiting(0.08, 8, **fields), 100).verdict.causes
    assert (cause.at - T0, cause.text) == (99, f"{text} of ")


def test_busy_slots_are_told_with_their_numbers() -> None:
    one = broken_while_waiting(0.08, 8)
    (half,) = one.broken_halves()
    assert render(half.explanations[0].event) == (
        "All 8 slots of the batch limit were busy, 5 with low and 3 with high, while 4 requests of high waited, "
        "the longest for 80 ms."
    )


def test_busy_slots_are_no_decision() -> None:
    assert seen(broken_while_waiting(0.08, 8), 100).decisions == ()


@pytest.mark.parametrize(
    ("oldest_wait_s", "num_running"),
    [(0.08, 7), (0.02, 8)],  # a slot was free; nobody had waited long
)
def test_what_was_not_full_or_not_waited_for_explains_nothing(oldest_wait_s: float, num_running: int) -> None:
    assert seen(broken_while_waiting(oldest_wait_s, num_running), 100).verdict.causes == ()


def test_slots_that_were_free_on_another_worker_explain_nothing() -> None:
    one = fold()
    full = {"num_running": 8, "classes": (load("high", 4, oldest_wait_s=1.0),)}
    one.take(worker(99, "gpu0", **full))
    one.take(worker(99, "gpu1", num_running=3))
    one.take(gateway(100, finished=tuple(ended(99 + n / 100, 0.5) for n in range(30))))
    one.tick(T0 + 100)
    assert seen(one, 100).verdict.causes == ()


def broken_tpot(step_p50_s: float, class_id: str = "high") -> TelemetryFold:
    """high's TPOT, promised in 20 ms, breaks at 100 s while a sequence of `class_id` decodes."""
    one = fold()
    rows = (row("r1", class_id),)
    one.take(worker(99, num_steps=9, step_p50_s=step_p50_s, num_running=3, rows=rows))
    one.take(gateway(100, finished=tuple(ended(99 + n / 100, 0.05, 0.03) for n in range(30))))
    one.tick(T0 + 100)
    return one


def test_steps_longer_than_the_tpot_objective_explain_late_tokens() -> None:
    (half,) = broken_tpot(0.05).broken_halves()
    assert [render(one.event) for one in half.explanations] == [
        "The steps of gpu0 took 50 ms at the median, longer than high's TPOT objective of 20 ms, "
        "with 3 sequences in the batch."
    ]


@pytest.mark.parametrize(("step_p50_s", "class_id"), [(0.02, "high"), (0.05, "low")])
def test_steps_in_time_or_of_other_classes_explain_no_late_tokens(step_p50_s: float, class_id: str) -> None:
    assert seen(broken_tpot(step_p50_s, class_id), 100).verdict.causes == ()


def test_what_was_seen_only_after_the_break_explains_why_it_lasts() -> None:
    one = fold()
    one.take(worker(99))
    one.take(gateway(100, finished=tuple(ended(99 + n / 100, 0.05, 0.03) for n in range(30))))
    one.tick(T0 + 100)
    for at in (110, 112):
        one.take(worker(at, num_steps=9, step_p50_s=0.05, num_running=1, rows=(row("r1"),)))
        one.tick(T0 + at)
    assert [cause.at - T0 for cause in seen(one, 113).verdict.causes] == [110]


def rules(low: dict[str, Any], lowest: dict[str, Any]) -> Policy:
    slo = {"ttft_s": 1, "tpot_s": 1}
    return policy(
        {"id": "high", "rank": 0, "weight": 1, "slo": slo},
        {"id": "low", "rank": 1, "weight": 1, "slo": slo, "preemption": low},
        {"id": "lowest", "rank": 2, "weight": 1, "slo": slo, "preemption": lowest},
    )


FIXED, YIELDS = {"preemptible": False}, {"preemptible": True}


@pytest.mark.parametrize(
    ("reason", "low", "lowest", "path"),
    [
        ("class_may_not_yield", FIXED, YIELDS, "classes.1.preemption.preemptible"),
        ("class_may_not_yield", YIELDS, FIXED, "classes.2.preemption.preemptible"),
        ("class_may_not_yield", FIXED, FIXED, None),  # either may have been meant
        ("past_max_generated", FIXED, YIELDS, "classes.2.preemption.max_generated_tokens"),
        ("head_holds_blocks", YIELDS, YIELDS, "memory.max_bypasses"),
        ("no_blocks", FIXED, YIELDS, None),  # no rule decides how large the memory is
    ],
)
def test_the_rule_is_named_where_there_is_no_doubt_which(
    reason: str, low: dict[str, Any], lowest: dict[str, Any], path: str | None
) -> None:
    assert rule_of(event(1, "not_preempted", reason), rules(low, lowest)) == path


def test_a_missed_bound_that_every_mirror_tells_is_one_decision() -> None:
    one = fold()
    for name, reason in (("gpu0", "estimate_was_off"), ("gpu1", "worker_slowed"), ("gpu2", "estimate_was_off")):
        told = event(1, "bound_missed", reason, numbers={"waited_s": 30.1, "late_s": 0.1, "slowness": 1.0})
        one.take(worker(2, name, events=(told,)))
    assert [(line.reason, line.num_like) for line in seen(one, 2).decisions] == [("estimate_was_off", 0)]


def test_the_wait_of_a_parked_request_is_another_miss_than_that_before_its_start() -> None:
    one = fold()
    for at, figure in ((1, "waited_s"), (2, "parked_s")):
        told = event(at, "bound_missed", "estimate_was_off", request_id="r", numbers={figure: 30.1, "late_s": 0.1})
        one.take(worker(3, events=(told,)))
    assert seen(one, 3).decisions[0].num_like == 1


def causes_with(*gateways: tuple[float, str]) -> list[tuple[float, str]]:
    """The causes of a break at 10 s, after gateways spoke at these times."""
    one = fold()
    one.take(worker(10))
    for at, name in gateways:
        one.take(gateway(at, name))
    one.take(gateway(10, gateways[-1][1], overdue={"high": 5}, missed={"high": 5}))
    one.tick(T0 + 10)
    return [(cause.at - T0, cause.text) for cause in seen(one, 10).verdict.causes]


def test_a_gateway_that_restarted_explains_late_first_tokens() -> None:
    assert causes_with((1, "web-1"), (9, "web-2")) == [(9, "restarted of ")]


def test_a_gateway_that_joins_others_explains_nothing() -> None:
    assert causes_with((1, "web-1"), (8.9, "web-1"), (9, "web-2")) == []


def test_one_restart_is_told_once() -> None:
    assert causes_with((1, "web-1"), (8, "web-2"), (8.5, "web-2"), (8.6, "web-3")) == [(8, "restarted of ")]


def test_a_restart_is_told_with_how_long_nobody_served() -> None:
    told = gateway_restarted(T0, 8.2)
    assert render(told) == "A gateway restarted: it began to serve after 8.2 s without one."
