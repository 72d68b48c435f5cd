"""What the Live page shows, from messages. The arithmetic is beside each figure."""

from __future__ import annotations

import pytest

from controlplane.telemetry.promise import Ended
from controlplane.telemetry.schema import LiveSnapshot
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import Device
from tests.telemetry.builders import (
    T0,
    class_of,
    ended,
    first,
    fold,
    gateway,
    info,
    load,
    policy,
    row,
    seen,
    worker,
    worker_of,
)

HIGH_JUDGED = "0.1/0.02/-"


def test_percentiles_of_the_window_are_those_of_its_samples() -> None:
    one = fold()
    samples = tuple(first(number / 10, number / 1000) for number in range(1, 101))
    one.take(gateway(10, first_tokens=samples))
    ttft = class_of(seen(one, 11)).ttft
    assert (ttft.p50, ttft.p95, ttft.p99, ttft.num) == (0.050, 0.095, 0.099, 100)


def test_samples_of_both_gateways_count() -> None:
    one = fold()
    one.take(gateway(1, "web-1", first_tokens=(first(1, 0.01),)))
    one.take(gateway(1, "web-2", first_tokens=(first(1, 0.03), first(0.9, 0.02))))
    assert class_of(seen(one, 2)).ttft.num == 3


def test_a_sample_leaves_after_five_minutes() -> None:
    one = fold()
    one.take(gateway(1, first_tokens=(first(1, 0.01), first(2, 0.02))))
    assert class_of(seen(one, 301)).ttft.num == 1


def test_attainment_is_the_share_that_met_both_objectives() -> None:
    one = fold()
    samples = (
        ended(1, 0.05, 0.010),
        ended(1.1, 0.20, 0.010),
        ended(1.2, 0.05, 0.030),
        ended(1.3, 0.09, 0.019),
    )
    one.take(gateway(2, finished=samples))
    assert class_of(seen(one, 3)).attainment == 2 / 4


def test_requests_per_second_and_goodput_are_of_the_last_minute() -> None:
    one = fold()
    one.take(gateway(0.25))  # telemetry begins at 0
    samples = tuple(ended(30 + number / 10, met=number % 3 != 0) for number in range(60))
    one.take(gateway(40, finished=samples))
    snapshot = seen(one, 80)
    assert (snapshot.finished_rps, snapshot.goodput_rps) == (60 / 60, 40 / 60)


def test_a_retired_class_counts_for_the_one_that_serves_it() -> None:
    one = fold(policy(retired={"batch": "low"}))
    one.take(gateway(1, first_tokens=(first(1, 0.5, "batch"),)))
    assert class_of(seen(one, 2), "low").ttft.num == 1


def test_the_queue_is_counted_once_though_two_workers_mirror_it() -> None:
    one = fold()
    one.take(worker(1.0, "gpu0", classes=(load(num_waiting=9),)))
    one.take(worker(1.1, "gpu1", classes=(load(num_waiting=8),)))
    assert seen(one, 1.2).num_waiting == 8  # the fresher mirror's


def test_a_silent_workers_mirror_does_not_count() -> None:
    one = fold()
    one.set_workers({}, {"gpu0": T0 + 5, "gpu1": T0 + 60})
    one.take(worker(9.9, "gpu1", classes=(load(num_waiting=3),)))
    one.take(worker(10.0, "gpu0", classes=(load(num_waiting=9),)))
    one.take(worker(12.9, "gpu1", classes=(load(num_waiting=2),)))
    assert seen(one, 13).num_waiting == 2


def test_running_and_parked_are_summed_over_workers() -> None:
    one = fold()
    parked = {"state": "parked", "parked_at": T0 - 3}
    one.take(worker(1, "gpu0", rows=(row("a"), row("b", state="prefill"), row("c", **parked))))
    one.take(worker(1, "gpu1", rows=(row("d"), row("e", by_memory=True, **parked), row("f", "low"))))
    high = class_of(seen(one, 1))
    assert (high.num_running, high.num_parked, high.num_parked_by_memory, high.longest_parked_s) == (
        3,
        2,
        1,
        4,
    )


def test_shares_of_service_are_sums_over_workers_within_the_window() -> None:
    one = fold()
    for at, high0, low0, high1 in ((0, 1000, 500, 0), (10, 1300, 600, 0), (20, 1300, 700, 400)):
        one.take(worker(at, "gpu0", classes=(load(service_tokens=high0), load("low", service_tokens=low0))))
        one.take(worker(at, "gpu1", classes=(load(service_tokens=high1), load("low"))))
    snapshot = seen(one, 21)
    high, low = class_of(snapshot, "high"), class_of(snapshot, "low")
    # high rose by 300 + 400, low by 200; what was served before the first message is not in the window.
    assert (high.share_got, low.share_got, high.share_due, low.share_due) == (700 / 900, 200 / 900, 0.7, 0.3)


def test_a_restarted_workers_service_starts_over() -> None:
    one = fold()
    for at, served in ((0, 1000), (1, 1100), (2, 30)):
        one.take(worker(at, classes=(load(service_tokens=served), load("low", service_tokens=0))))
    one.take(worker(3, classes=(load(service_tokens=30), load("low", service_tokens=130))))
    assert class_of(seen(one, 4)).share_got == 130 / 260


def test_tokens_per_second_are_of_the_last_ten_seconds() -> None:
    one = fold()
    for number in range(80):
        one.take(worker(number / 4, num_generated_tokens={"high": 10, "low": 5}))
    snapshot = seen(one, 19.8)
    assert (class_of(snapshot).tokens_per_s, snapshot.tokens_per_s) == (40 * 10 / 10, 40 * 15 / 10)


def test_energy_per_token_is_over_the_window() -> None:
    one = fold()
    for at, joules in ((0, 100.0), (1, 160.0), (2, 220.0)):
        device = Device(kind="cuda", name="H200", energy_j=joules, power_w=60)
        one.take(worker(at, device=device, num_generated_tokens={"high": 100 if at else 0}))
    assert worker_of(seen(one, 2)).device.joules_per_1k_tokens == 120 / 200 * 1000


def test_a_device_that_says_nothing_has_no_age() -> None:
    one = fold()
    one.take(worker(1))
    assert seen(one, 2).devices_at is None


@pytest.mark.parametrize(("at", "state"), [(3.0, "live"), (3.1, "silent"), (5.9, "silent"), (6.0, "gone")])
def test_a_worker_is_silent_after_two_seconds_and_gone_when_its_lease_ends(at: float, state: str) -> None:
    one = fold()
    one.take(worker(1))
    one.set_workers({"gpu0": info()}, {"gpu0": T0 + 6})
    assert worker_of(seen(one, at)).state == state


def test_a_worker_with_a_slow_interval_is_given_three_of_them() -> None:
    one = fold()
    one.take(worker(1, interval_s=2.0))
    one.set_workers({}, {"gpu0": T0 + 60})
    assert worker_of(seen(one, 6.9)).state == "live"


def test_a_draining_worker_is_shown_so() -> None:
    one = fold()
    one.take(worker(1))
    one.set_workers({"gpu0": info(draining=True)}, {"gpu0": T0 + 6})
    assert worker_of(seen(one, 2)).state == "draining"


def test_what_ran_on_a_gone_worker_is_not_shown_as_running() -> None:
    one = fold()
    one.take(worker(1, num_running=1, rows=(row("a"),)))
    one.set_workers({}, {})
    snapshot = seen(one, 10)
    assert (snapshot.num_running, class_of(snapshot).num_running, worker_of(snapshot).cells) == (0, 0, ())


def test_a_gone_worker_disappears_after_a_minute() -> None:
    one = fold()
    one.take(worker(1))
    one.set_workers({}, {})
    one.tick(T0 + 62)
    assert seen(one, 62).workers == ()


def test_the_age_of_a_source_grows_when_it_stops() -> None:
    one = fold()
    one.take(gateway(1))
    one.take(worker(2))
    snapshot = seen(one, 60)
    assert (snapshot.gateways_at, snapshot.workers_at) == (T0 + 1, T0 + 2)


def test_latencies_are_as_old_as_the_gateway_that_lags_behind() -> None:
    one = fold()
    one.take(gateway(1, "web-1"))
    one.take(gateway(8, "web-2"))
    assert seen(one, 8).gateways_at == T0 + 1


def test_a_gateway_whose_lease_is_over_no_longer_makes_them_old() -> None:
    one = fold()
    one.take(gateway(1, "web-1"))
    one.take(gateway(12, "web-2"))
    assert seen(one, 12).gateways_at == T0 + 12


def test_workers_on_the_live_policy_are_counted() -> None:
    one = fold()
    one.take(worker(1, "gpu0", policy_version=41))
    one.take(worker(1, "gpu1", policy_version=40))
    snapshot = seen(one, 1)
    assert (snapshot.num_workers_on_policy, snapshot.num_workers) == (1, 2)


def test_step_times_are_the_median_over_messages_by_their_steps() -> None:
    one = fold()
    one.take(worker(1, "gpu0", num_steps=10, step_p50_s=0.02, step_p99_s=0.03))
    one.take(worker(1, "gpu1", num_steps=3, step_p50_s=0.05, step_p99_s=0.09))
    snapshot = seen(one, 2)
    assert (snapshot.step_p50_s, snapshot.step_p99_s) == (0.02, 0.03)


def test_a_workers_step_time_is_still_there_in_a_short_pause() -> None:
    one = fold()
    one.take(worker(1, num_steps=10, step_p50_s=0.02, step_p99_s=0.03))
    one.take(worker(2, num_steps=0))
    assert [worker_of(seen(one, 2)).step_p50_s, worker_of(seen(one, 2)).step_p99_s] == [0.02, 0.03]


def test_the_models_name_is_the_last_part_of_its_directory() -> None:
    one = fold()
    one.set_workers({"gpu0": info(model="/models/smollm2-135m/")}, {})
    assert one.fleet.model() == "smollm2-135m"


def test_refusals_are_counted_over_the_window() -> None:
    one = fold()
    one.take(gateway(1, refused={"low": 2}))
    one.take(gateway(200, refused={"low": 3}))
    assert [class_of(seen(one, at), "low").num_refused for at in (200.5, 302)] == [5, 3]


# Points and roll-ups


def test_a_point_closes_two_seconds_after_its_end() -> None:
    one = fold()
    one.take(gateway(5, first_tokens=(first(5, 0.01),)))
    assert (len(one.tick(T0 + 11.9)), len(one.tick(T0 + 12))) == (0, 1)


def test_a_point_holds_the_samples_of_its_ten_seconds_only() -> None:
    one = fold()
    one.take(gateway(5, first_tokens=(first(5, 0.01), first(9.9, 0.03), first(10, 0.5))))
    (point,) = one.tick(T0 + 12)
    assert (point.at, point.ttft["high"].p50, point.ttft["high"].num) == (T0 + 10, 0.01, 2)


def test_a_point_takes_the_mean_of_the_workers_levels() -> None:
    one = fold()
    one.take(worker(4, "gpu0", batch_limit=8, num_running=6, num_used_blocks=50))
    one.take(worker(6, "gpu0", batch_limit=8, num_running=4, num_used_blocks=60))
    one.take(worker(6, "gpu1", batch_limit=4, num_running=3, num_used_blocks=10))
    (point,) = one.tick(T0 + 12)
    assert (point.batch_limit, point.num_running, point.kv_share) == (6, 4, {"gpu0": 0.6, "gpu1": 0.1})


def test_ten_seconds_without_telemetry_leave_a_gap() -> None:
    one = fold()
    one.take(gateway(5))
    one.take(gateway(25))
    assert [point.at for point in one.tick(T0 + 40)] == [T0 + 10, T0 + 30]


def test_an_interval_is_handed_out_for_storing_once() -> None:
    one = fold()
    one.take(gateway(5, finished=(ended(5), ended(6, ttft_s=0.5))))
    (rollup,) = one.close_rollups(T0 + 20)
    counts = rollup.classes[0].counts
    assert (counts.num, counts.num_late, one.close_rollups(T0 + 30)) == (2, 1, ())


def test_a_sample_that_comes_after_its_interval_was_stored_is_not_lost() -> None:
    one = fold()
    one.take(gateway(5, finished=(ended(5),)))
    one.close_rollups(T0 + 20)
    one.take(gateway(21, finished=(ended(9),)))
    later = one.close_rollups(T0 + 40)
    assert sum(row.counts.num for rollup in later for row in rollup.classes) == 1


# Restoring


def test_a_restored_fold_shows_the_window_of_the_old_one() -> None:
    old, new = fold(), fold()
    samples = tuple(ended(number / 5, ttft_s=0.05 + 0.002 * (number % 30)) for number in range(200))
    old.take(gateway(40, finished=samples))
    old.tick(T0 + 60)
    new.restore(old.close_rollups(T0 + 60), before=T0 + 60)
    before, after = class_of(seen(old, 60)), class_of(seen(new, 60))
    assert (after.num_judged, after.num_late, after.tpot.num) == (before.num_judged, before.num_late, 200)


def test_a_restored_fold_remembers_since_when_a_promise_is_broken() -> None:
    old, new = fold(), fold()
    for second in range(60):
        ttft_s = 0.5 if second >= 30 else 0.05
        old.take(gateway(second + 1, finished=tuple(ended(second + n / 10, ttft_s) for n in range(10))))
        old.tick(T0 + second + 1)
    new.restore(old.close_rollups(T0 + 100), before=T0 + 100)
    since_old = class_of(seen(old, 61)).ttft_state.broken_since
    since_new = class_of(seen(new, 61)).ttft_state.broken_since
    assert (since_old, since_new) == (T0 + 31, T0 + 40)  # roll-ups know it to ten seconds


def test_the_tail_of_the_stream_does_not_count_twice_what_was_restored() -> None:
    old, new = fold(), fold()
    messages = [gateway(second, finished=(ended(second - 0.5),)) for second in range(1, 31)]
    for message in messages:
        old.take(message)
    new.restore(old.close_rollups(T0 + 30), before=T0 + 10)
    for message in messages:
        new.take(message)
    assert class_of(seen(new, 31)).num_judged == 30


def test_the_budget_is_what_is_stored_and_what_came_since() -> None:
    one = fold()
    one.set_budget({("high", HIGH_JUDGED): Ended(1000, 5, since=T0 - 9000)}, through=T0 + 10)
    one.take(gateway(9, finished=(ended(9, ttft_s=9.0),)))  # is in the stored figures
    one.take(gateway(12, finished=tuple(ended(12 + n / 1000, ttft_s=9.0) for n in range(3))))
    one.close_rollups(T0 + 60)
    one.take(gateway(61, finished=tuple(ended(61 + n / 1000) for n in range(97))))
    # 1,100 requests, 8 late; 1 % of 1,100 are 11.
    assert class_of(seen(one, 62)).budget_left == pytest.approx(1 - 8 / 11)


def test_a_request_that_misses_while_it_waits_uses_the_budget_at_once() -> None:
    one = fold()
    one.set_budget({("high", HIGH_JUDGED): Ended(999, 0, since=T0 - 9000)}, through=T0 + 10)
    one.take(gateway(12, overdue={"high": 1}, missed={"high": 1}))
    assert class_of(seen(one, 12)).budget_left == pytest.approx(1 - 1 / 10)  # 1 % of 1,000 are 10


def test_the_budget_says_since_when_it_counts() -> None:
    one = fold()
    one.set_budget({("high", HIGH_JUDGED): Ended(1000, 5, since=T0 - 9000)}, through=T0 + 10)
    assert class_of(seen(one, 62)).budget_since == T0 - 9000


RELAXED = {"ttft_s": 3.0, "tpot_s": 0.02, "target": 0.99}


def relaxed() -> Policy:
    return policy({"id": "high", "rank": 0, "weight": 1, "slo": RELAXED})


def test_what_other_objectives_judged_is_not_in_the_budget() -> None:
    one = fold()
    one.set_budget({("high", HIGH_JUDGED): Ended(1000, 500, since=T0 - 9000)}, through=T0 + 10)
    one.take(gateway(11, finished=(ended(11, ttft_s=2.0),)))  # late by the old objectives
    one.set_policy(42, relaxed())
    one.take(gateway(12, finished=(ended(12, ttft_s=2.0),)))  # in time by the new ones, in the same interval
    live = class_of(seen(one, 13))
    assert (live.budget_left, live.budget_since) == (1.0, T0 + 10)


def test_another_target_keeps_the_budgets_requests() -> None:
    one = fold()
    one.set_budget({("high", HIGH_JUDGED): Ended(1000, 5, since=T0)}, through=T0 + 10)
    slo = {"ttft_s": 0.1, "tpot_s": 0.02, "target": 0.98}
    one.set_policy(42, policy({"id": "high", "rank": 0, "weight": 1, "slo": slo}))
    assert class_of(seen(one, 13)).budget_left == pytest.approx(1 - 5 / 20)


def test_an_interval_in_which_the_objectives_changed_has_one_point_and_two_rows() -> None:
    one = fold()
    one.take(gateway(11, finished=(ended(11),)))
    one.set_policy(42, relaxed())
    one.take(gateway(12, finished=(ended(12),)))
    (rollup,) = one.close_rollups(T0 + 60)
    assert [(row.objectives, row.counts.num) for row in rollup.classes] == [
        (HIGH_JUDGED, 1),
        ("3/0.02/-", 1),
    ]
    assert rollup.point.tpot["high"].num == 2


def test_a_restored_fold_does_not_hold_old_judgements_against_new_objectives() -> None:
    old, new = fold(), fold(relaxed())
    for second in range(60):
        late = tuple(ended(second + n / 10, ttft_s=2.0) for n in range(10))
        old.take(gateway(second + 1, first_tokens=late, finished=late))
    new.restore(old.close_rollups(T0 + 100), before=T0 + 100)
    card = class_of(seen(new, 61))
    assert card.ttft_state.kept
    assert (card.num_judged, card.ttft.num, card.judged_since) == (0, 0, T0 + 60)


def test_a_restored_fold_shows_what_the_old_one_showed_of_changed_objectives() -> None:
    old, new = fold(), fold(relaxed())
    messages = [gateway(second, finished=(ended(second - 0.5, 2.0),)) for second in range(1, 61)]
    for message in messages[:25]:
        old.take(message)
    old.set_policy(42, relaxed(), at=T0 + 25)
    for message in messages[25:]:
        old.take(message)
    rollups = old.close_rollups(T0 + 50)  # as far as 40 s
    new.restore(rollups, before=max(T0 + 10, new.judged_otherwise_until(rollups)))
    for message in messages:  # the stream still has them all
        new.take(message)
    shown = [class_of(seen(one, 61)) for one in (old, new)]
    assert [(card.num_judged, card.num_late) for card in shown] == [(35, 0)] * 2


# Verdicts


def test_without_a_worker_that_is_the_verdict() -> None:
    assert seen(fold(), 1).verdict.kind == "no_worker"


def test_without_requests_there_is_no_traffic() -> None:
    one = fold()
    one.take(worker(1))
    assert seen(one, 1).verdict.kind == "no_traffic"


def test_a_request_that_waits_is_traffic() -> None:
    one = fold()
    one.take(worker(1, classes=(load(num_waiting=1),)))
    assert seen(one, 1).verdict.kind == "kept"


def test_verdict_and_card_say_so_while_requests_wait_past_their_objective() -> None:
    one = fold()
    one.take(worker(1))
    one.take(gateway(1, overdue={"low": 13}, missed={"low": 13}))
    snapshot = seen(one, 1)
    card, verdict = class_of(snapshot, "low"), snapshot.verdict
    assert (verdict.kind, verdict.class_id, verdict.num_late) == ("broken", "low", 13)
    assert (card.ttft_state.kept, card.num_late, card.num_overdue) == (False, 13, 13)


def test_misses_of_all_gateways_that_live_count() -> None:
    one = fold()
    one.take(gateway(1, "web-1", overdue={"high": 1}, missed={"high": 2}))
    one.take(gateway(9, "web-2", overdue={"high": 3}, missed={"high": 3}))
    assert [class_of(seen(one, at)).num_late for at in (9, 12)] == [5, 3]


def test_a_gateways_last_word_on_what_waits_counts() -> None:
    one = fold()
    one.take(gateway(2, overdue={}, missed={"high": 1}, first_tokens=(first(2, 0.5),)))
    one.take(gateway(1, overdue={"high": 1}, missed={"high": 1}))  # comes late
    card = class_of(seen(one, 3))
    assert (card.num_overdue, card.num_late, card.ttft_state.num_late) == (0, 1, 1)


def figures(snapshot: LiveSnapshot) -> tuple[tuple[int, int], tuple[int, int]]:
    """(requests, late ones) of the verdict and of its class's card."""
    verdict = snapshot.verdict
    card = class_of(snapshot, verdict.class_id or "")
    return (verdict.num_requests, verdict.num_late), (card.num_judged, card.num_late)


def test_verdict_and_card_count_the_same_requests_while_some_run_and_some_wait() -> None:
    one = fold()
    one.take(worker(1))
    begun = tuple(first(n / 100, 0.5 if n < 30 else 0.05) for n in range(90))
    done = tuple(ended(n / 100, 0.5 if n < 30 else 0.05, 0.5 if n < 10 else 0.01) for n in range(60))
    one.take(gateway(1, first_tokens=begun, finished=done, overdue={"high": 7}, missed={"high": 7}))
    of_verdict, of_card = figures(seen(one, 1))
    assert of_verdict == of_card == (67, 37)


def test_after_a_restart_an_adopted_answer_leaves_badge_and_attainment_at_one() -> None:
    one = fold()
    one.take(worker(1))
    unknown = {"class_id": "low", "ttft_s": None, "tpot_s": None, "met": None, "num_output_tokens": 9}
    good = tuple(ended(n / 10, 0.5, 0.05, "low") for n in range(8))
    one.take(gateway(1, finished=good + tuple(ended(n, e2e_s=30.0, **unknown) for n in range(3))))
    card = class_of(seen(one, 1), "low")
    assert (card.ttft_state.kept, card.ttft_state.num_late, card.num_late, card.num_judged) == (True, 0, 0, 8)


def test_what_ended_before_the_objectives_changed_and_is_told_later_is_judged_by_the_old_ones() -> None:
    one = fold()
    one.take(worker(1))
    one.set_policy(42, relaxed(), at=T0 + 3)
    told_late = (ended(2.9, ttft_s=2.0),)
    one.take(gateway(4, first_tokens=told_late, finished=told_late))
    card = class_of(seen(one, 4))
    assert (card.num_judged, card.ttft.num) == (0, 0)
    (rollup,) = one.close_rollups(T0 + 60)
    assert [(row.objectives, row.counts.num_late) for row in rollup.classes] == [(HIGH_JUDGED, 1)]


def test_after_the_objectives_changed_every_figure_counts_since_then() -> None:
    one = fold()
    one.take(worker(1))
    one.take(gateway(1, finished=tuple(ended(n / 100, 2.0) for n in range(30))))  # late by the old ones
    broken = seen(one, 2).verdict.kind
    one.set_policy(42, relaxed(), at=T0 + 3)
    one.take(gateway(4, finished=(ended(4, ttft_s=2.0),)))
    snapshot = seen(one, 4)
    card = class_of(snapshot)
    assert (broken, snapshot.verdict.kind) == ("broken", "kept")
    assert (card.num_judged, card.num_late, card.ttft.num, card.budget_left) == (1, 0, 0, 1.0)
    assert (card.judged_since, card.budget_since) == (T0 + 3, T0 + 3)


def test_what_waits_is_judged_by_new_objectives_once_the_gateways_know_them() -> None:
    one = fold()
    one.take(worker(1))
    one.set_policy(42, relaxed(), at=T0 + 3)
    one.take(gateway(3.2, overdue={"high": 5}, missed={"high": 5}))  # still by the old ones
    early = class_of(seen(one, 3.2)).num_late
    one.take(gateway(5.2, overdue={"high": 1}, missed={"high": 1}))
    assert (early, class_of(seen(one, 5.2)).num_late) == (0, 1)


def test_what_waits_in_a_retired_class_is_late_in_the_one_that_serves_it() -> None:
    live = policy(retired={"urgent": "high"})
    one = fold(live)
    one.take(gateway(1, overdue={"urgent": 1, "unheard-of": 1}, missed={"urgent": 1, "unheard-of": 1}))
    assert class_of(seen(one, 1)).num_late == 1


def test_the_kept_verdict_names_the_promise_nearest_its_limit() -> None:
    one = fold()
    one.take(worker(1))
    one.take(gateway(1, finished=(ended(1, tpot_s=0.019), ended(1, 0.5, 0.05, "low"))))
    verdict = seen(one, 1).verdict
    # high's TPOT is at 95 % of its objective, low's at 50 %.
    assert (verdict.kind, verdict.class_id, verdict.metric) == ("kept", "high", "tpot")


def test_the_broken_verdict_leads_with_the_fastest_burn() -> None:
    one = fold()
    one.take(worker(1))
    high = tuple(ended(n / 100, 0.5 if n < 4 else 0.05) for n in range(100))  # 4 % late of 1 %: 4 ×
    # 60 % of 10 %: 6 ×
    low = tuple(ended(n / 100, 5.0 if n < 60 else 0.5, class_id="low") for n in range(100))
    one.take(gateway(1, finished=high + low))
    verdict = seen(one, 1).verdict
    assert (verdict.kind, verdict.class_id, verdict.num_late, verdict.num_requests, verdict.num_more) == (
        "broken", "low", 60, 100, 1,
    )  # fmt: skip


def test_a_broken_promise_goes_before_traffic() -> None:
    one = fold()
    one.take(worker(1))
    one.take(gateway(1, finished=tuple(ended(n / 100, tpot_s=0.5) for n in range(30))))
    verdict = seen(one, 1).verdict
    assert (verdict.kind, verdict.metric, verdict.attainment, verdict.since) == ("broken", "tpot", 0, T0 + 1)


# Classes


def test_classes_come_by_rank_and_keep_their_colours_over_versions() -> None:
    one = fold()
    changed = policy(
        {"id": "urgent", "rank": 0, "weight": 1, "slo": {"ttft_s": 1, "tpot_s": 1}},
        {"id": "low", "rank": 1, "weight": 1, "slo": {"ttft_s": 1, "tpot_s": 1}},
    )
    one.set_policy(42, changed)
    assert [(each.id, each.color) for each in seen(one, 1).classes] == [("urgent", 2), ("low", 1)]


def test_before_the_first_policy_there_are_no_classes() -> None:
    from controlplane.telemetry.fold import TelemetryFold
    from tests.telemetry.builders import words

    one = TelemetryFold(words)
    one.take(gateway(1, first_tokens=(first(1, 0.1),)))
    snapshot = seen(one, 1)
    assert (snapshot.policy_version, snapshot.classes) == (None, ())
