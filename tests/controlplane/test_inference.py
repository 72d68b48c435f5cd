"""Request records: committed together, ended once, purged in time."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest
from django.utils import timezone
from msgspec.structs import asdict

from controlplane.celery import app as celery
from controlplane.common.connections import redis_client, run_script
from controlplane.inference import selectors, services, tasks
from controlplane.inference.models import InferenceRequest
from controlplane.inference.reconciling import Outcome, reconcile_lost
from controlplane.inference.services import AcceptedRequest
from controlplane.tenants.models import Tenant
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import CompletionRecord, Timings, encode

from .conftest import POOL, completion

Maker = Callable[..., AcceptedRequest]


def accept(one: AcceptedRequest) -> InferenceRequest:
    services.record_accepted([one])
    return row_of(one)


def row_of(one: AcceptedRequest) -> InferenceRequest:
    return selectors.request_of(UUID(one.header.request_id))


def finish(one: AcceptedRequest, **fields: object) -> InferenceRequest:
    services.mark_finished([completion(one.header.request_id, **fields)])
    return row_of(one)


def test_many_accepted_requests_are_one_insert(
    accepted: Maker, django_assert_num_queries: Callable[..., object]
) -> None:
    rows = [accepted() for _ in range(50)]
    with django_assert_num_queries(1):
        services.record_accepted(rows)
    assert InferenceRequest.objects.filter(state="accepted").count() == 50


def test_recording_the_same_request_twice_changes_nothing(accepted: Maker) -> None:
    one = accepted()
    services.record_accepted([one])
    services.record_accepted([one])
    assert InferenceRequest.objects.count() == 1


def test_a_prompt_with_a_null_character_can_be_stored(accepted: Maker) -> None:
    row = accept(accepted(prompt=[{"role": "user", "content": "a\0b"}]))
    assert row.prompt[0]["content"] == "a\N{REPLACEMENT CHARACTER}b"


def test_a_completion_fills_the_row(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    row = finish(one, timings=Timings(queue_s=0.1, prefill_s=0.2, num_preemptions=1), attempt=1)
    figures = (
        row.state,
        row.queue_s,
        row.ttft_s,
        row.num_output_tokens,
        row.num_attempts,
        row.num_preemptions,
    )
    assert figures == (
        "succeeded", 0.1, 0.25, 2, 2, 1,
    )  # fmt: skip


def test_every_figure_of_a_completion_is_in_the_row(accepted: Maker) -> None:
    timings = Timings(
        queue_s=0.1, formation_s=0.2, prefill_s=0.3, decode_s=0.4, parked_s=0.5, num_preemptions=6, num_cached_tokens=7
    )
    figures = {
        "finish_reason": "length",
        "num_prompt_tokens": 8,
        "num_output_tokens": 9,
        "ttft_s": 1.1,
        "tpot_s": 1.2,
        "e2e_s": 1.3,
        "post_s": 1.4,
        "worker": "worker-2",
        "error": 'said "no"\n',
    }
    one = accepted()
    accept(one)
    row = finish(one, **figures, first_token_at=1_800_000_000.25, finished_at=1_800_000_001.5, timings=timings)
    assert {name: getattr(row, name) for name in figures} == figures
    assert {name: getattr(row, name) for name in timings.__struct_fields__} == asdict(timings)
    assert (row.first_token_at, row.finished_at) == tuple(map(services.instant, (1_800_000_000.25, 1_800_000_001.5)))


def test_the_first_end_of_a_request_counts(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    finish(one)
    assert finish(one, state="cancelled", num_output_tokens=9).state == "succeeded"


def test_the_first_end_counts_within_one_batch_too(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    ends = [completion(one.header.request_id), completion(one.header.request_id, state="failed")]
    assert services.mark_finished(ends) == 1
    assert row_of(one).state == "succeeded"


def test_a_completion_without_a_row_is_dropped(db: None) -> None:
    assert services.mark_finished([completion("7f3c1a90-0000-4000-8000-000000000000")]) == 0


def test_a_batch_of_completions_takes_as_many_queries_as_one(
    accepted: Maker, django_assert_max_num_queries: Callable[..., object]
) -> None:
    rows = [accepted() for _ in range(40)]
    services.record_accepted(rows)
    with django_assert_max_num_queries(5):
        services.mark_finished(completion(one.header.request_id) for one in rows)


def wire(record: CompletionRecord) -> str:
    return base64.b64encode(encode(record)).decode()


def test_the_task_may_run_twice(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    batch = [wire(completion(one.header.request_id))]
    assert (tasks.record_completions(batch), tasks.record_completions(batch)) == (1, 0)


def test_an_unreadable_record_does_not_hold_up_the_others(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    assert tasks.record_completions(["bm90IG1zZ3BhY2s=", wire(completion(one.header.request_id))]) == 1


def test_a_record_that_the_database_refuses_does_not_hold_up_the_others(accepted: Maker) -> None:
    good, bad = accepted(), accepted()
    services.record_accepted([good, bad])
    batch = [completion(good.header.request_id), completion(bad.header.request_id, state="exploded")]
    assert tasks.record_completions([wire(one) for one in batch]) == 1


# --- retention ---


def retain(rule: str, days: int = 30) -> None:
    Tenant.objects.update(retention=rule, retention_days=days)


def test_with_no_retention_neither_prompt_nor_payload_is_stored(accepted: Maker) -> None:
    row = accept(accepted(retention="none"))
    assert (row.prompt, row.payload) == (None, None)


def test_until_the_end_the_prompt_is_kept(accepted: Maker) -> None:
    assert accept(accepted()).prompt is not None


def test_after_the_end_nothing_is_kept(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    row = finish(one)
    assert (row.prompt, row.payload, row.output, row.purge_at) == (None, None, None, None)


def test_by_days_prompt_and_output_are_kept_until_a_date(accepted: Maker) -> None:
    retain("days", 7)
    one = accepted(retention="days")
    accept(one)
    row = finish(one)
    assert row.output == "Hi there"
    assert row.purge_at - row.finished_at == timedelta(days=7)


def test_a_native_request_keeps_its_output_for_an_hour_in_any_case(accepted: Maker) -> None:
    retain("none")
    one = accepted(endpoint="requests.chat", retention="none")
    accept(one)
    row = finish(one)
    assert (row.output, row.purge_at - row.finished_at) == ("Hi there", timedelta(hours=1))


def test_purging_deletes_texts_whose_time_has_come_and_no_figures(accepted: Maker) -> None:
    one = accepted(endpoint="requests.chat")
    accept(one)
    finish(one)
    assert services.purge_payloads(now=timezone.now() + timedelta(hours=2)) == 1
    row = row_of(one)
    assert (row.output, row.ttft_s) == (None, 0.25)


def test_purging_leaves_what_is_still_due(accepted: Maker) -> None:
    one = accepted(endpoint="requests.chat")
    accept(one)
    finish(one)
    assert services.purge_payloads() == 0


# --- progress and reconciling ---


def enqueue(one: AcceptedRequest) -> None:
    run_script(scripts.enqueue(POOL, one.header, one.payload))


def test_a_request_is_queued_until_a_worker_claims_it(accepted: Maker) -> None:
    one = accepted()
    row = accept(one)
    enqueue(one)
    assert selectors.progress_of(row) == "queued"


def test_a_claimed_request_is_running(accepted: Maker) -> None:
    one = accepted()
    row = accept(one)
    enqueue(one)
    run_script(scripts.claim(POOL, "gpu-0", [one.header.request_id], 5.0))
    assert selectors.progress_of(row) == "running"


def test_a_request_that_redis_knows_is_left_alone(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    enqueue(one)
    assert reconcile_lost(POOL, 0.0) == Outcome()


def test_a_request_whose_gateway_lives_is_left_to_it(accepted: Maker) -> None:
    accept(accepted(gateway="web-1"))
    keep_gateway_alive()
    assert reconcile_lost(POOL, 0.01) == Outcome()


def test_a_young_request_is_left_alone(accepted: Maker) -> None:
    accept(accepted())
    assert reconcile_lost(POOL, 60.0) == Outcome()


def test_a_lost_stream_is_failed_with_what_to_do(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    assert reconcile_lost(POOL, 0.0) == Outcome(num_failed=1)
    assert "Send it again" in row_of(one).error


def test_a_lost_native_request_is_queued_again(accepted: Maker) -> None:
    one = accepted(endpoint="requests.chat")
    accept(one)
    assert reconcile_lost(POOL, 0.0) == Outcome(num_requeued=1)
    waiting = run_script(scripts.mirror(POOL)).headers
    assert [(header.request_id, header.gateway) for header in waiting] == [(one.header.request_id, "web-1")]


def test_a_lost_native_request_without_a_stored_prompt_is_failed(accepted: Maker) -> None:
    accept(accepted(endpoint="requests.chat", retention="none"))
    assert reconcile_lost(POOL, 0.0) == Outcome(num_failed=1)


def keep_gateway_alive() -> None:
    redis_client().zadd(keys.GATEWAY_LEASES.of(POOL), {"web-1": redis_client().time()[0] + 10})


def test_a_request_that_its_living_gateway_forgot_is_given_up_in_the_end(accepted: Maker) -> None:
    accept(accepted())
    InferenceRequest.objects.update(accepted_at=timezone.now() - timedelta(minutes=11))
    keep_gateway_alive()
    assert reconcile_lost(POOL, 60.0) == Outcome(num_failed=1)


def test_a_completion_that_comes_late_corrects_the_guess_that_it_was_lost(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    reconcile_lost(POOL, 0.0)
    row = finish(one)
    assert (row.state, row.finish_reason, row.error) == ("succeeded", "stop", "")


def test_a_guess_does_not_replace_a_known_end(accepted: Maker) -> None:
    one = accepted()
    accept(one)
    finish(one)
    assert services.fail_lost([row_of(one)], "lost") == 0


def test_expired_leases_are_requeued_by_the_task(accepted: Maker, settings: object) -> None:
    one = accepted()
    enqueue(one)
    run_script(scripts.claim(POOL, "gpu-0", [one.header.request_id], -1.0))
    assert tasks.requeue_expired() == 1


@pytest.mark.parametrize("name", sorted(entry["task"] for entry in celery.conf.beat_schedule.values()))
def test_every_scheduled_task_exists(name: str) -> None:
    celery.loader.import_default_modules()
    assert name in celery.tasks
