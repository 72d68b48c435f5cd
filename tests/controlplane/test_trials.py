"""Trying a draft on recorded traffic: real rows, a real arrival stream, a real replay."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from controlplane.audit.selectors import entries_of
from controlplane.common.connections import redis_client
from controlplane.inference.services import AcceptedRequest, mark_finished, record_accepted
from controlplane.policies import trials
from controlplane.policies.models import Trial
from controlplane.policies.tasks import run_next_trial, run_trial
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import Header, WorkerInfo, encode

from .conftest import POOL, Document, completion

URL = "/api/v1/policies/trials"
Accepted = Callable[..., AcceptedRequest]


@pytest.fixture
def worker(redis_url: str) -> None:
    """A live worker of 8 slots that has learned a step of 10 ms."""
    figures = CostModel({"base_s": 0.01, "decode_row_s": 1e-4, "prefill_token_s": 1e-4}).to_dict()
    info = WorkerInfo(
        worker="w1", pool=POOL, model="m", started_at=0.0, num_slots=8, num_blocks=1000, block_size=16,
        max_model_len=4096, cost_model=figures,
    )  # fmt: skip
    redis_client().set(keys.WORKER_INFO.of(POOL, "w1"), encode(info))
    redis_client().zadd(keys.WORKER_LEASES.of(POOL), {"w1": time.time() + 600})


@pytest.fixture
def answered(accepted: Accepted) -> Callable[..., None]:
    """Records requests that were answered with so many tokens, some seconds ago."""

    def make(num: int, class_id: str, *, ago_s: float, apart_s: float = 0.25, num_output_tokens: int = 40) -> None:
        start, ids = time.time() - ago_s, [str(uuid4()) for _ in range(num)]
        headers = [header(one, class_id, start + n * apart_s) for n, one in enumerate(ids)]
        record_accepted([accepted(request_id=one.request_id, header=one) for one in headers])
        mark_finished([completion(one, num_prompt_tokens=100, num_output_tokens=num_output_tokens) for one in ids])

    return make


def header(request_id: str, class_id: str, arrived_at: float) -> Header:
    return Header(
        request_id=request_id, class_id=class_id, tenant="acme", gateway="web-1", arrived_at=arrived_at,
        num_prompt_tokens=100, max_tokens=64,
    )  # fmt: skip


def refuse(class_id: str, outcome: str = "predicted_ttft") -> None:
    record = (time.time() - 1.0, class_id, "acme", 100, 64, outcome)
    redis_client().xadd(keys.ARRIVALS.of(POOL), {b"a": msgspec.msgpack.encode(record)})


def start(api: APIClient, document: Document, window_s: int | None = 3600) -> dict[str, Any]:
    answer = api.post(URL, {"document": document, "window_s": window_s})
    assert answer.status_code == 201, answer.json()
    return dict(answer.json())


def result_of(api: APIClient, document: Document) -> dict[str, Any]:
    """Start a trial, run its task, read what came of it."""
    trial = start(api, document)
    run_trial(trial["id"])
    body = api.get(f"{URL}/{trial['id']}").json()
    assert body["state"] == "done", body["problem"]
    return dict(body["result"])


def strict(document: Document) -> Document:
    """No first token can come within 1 ms."""
    changed = copy.deepcopy(document)
    changed["classes"][0]["slo"]["ttft_s"] = 0.001
    return changed


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"]


@pytest.fixture
def ready(published: Document, worker: None, answered: Callable[..., None]) -> Document:
    answered(30, "high", ago_s=60)
    return published


def test_a_trial_replays_what_was_accepted_and_what_was_refused(api: APIClient, ready: Document) -> None:
    refuse("low")
    result = result_of(api, ready)
    assert (result["num_requests"], result["num_refused"], result["num_guessed"]) == (31, 1, 1)


def test_what_a_quota_refused_is_no_traffic_for_a_policy(api: APIClient, ready: Document) -> None:
    refuse("low", "tenant_quota")
    assert result_of(api, ready)["num_requests"] == 30


def test_the_same_document_has_the_same_figures_on_both_sides(api: APIClient, ready: Document) -> None:
    result = result_of(api, ready)
    high = next(one for one in result["classes"] if one["class_id"] == "high")
    assert high["active"] == high["draft"]
    assert high["active"]["within"] == 1.0
    assert result["verdict"]["headline"] == "No class would notice: no figure differs by 5 % or more."


def test_a_draft_that_would_break_a_promise_says_so_first(api: APIClient, ready: Document) -> None:
    headline = result_of(api, strict(ready))["verdict"]["headline"]
    assert headline.startswith("high would break its promise: 0 % within 1 ms and 25 ms a token, instead of 100 %")


def test_what_gateways_measured_stands_beside_it(api: APIClient, ready: Document) -> None:
    high = result_of(api, ready)["classes"][0]
    assert (high["measured"]["num"], high["measured"]["ttft_p50_s"]) == (30, 0.25)


def test_a_retired_class_counts_for_its_heir(api: APIClient, ready: Document) -> None:
    draft = copy.deepcopy(ready)
    draft["classes"] = [one for one in draft["classes"] if one["id"] != "high"]
    draft["retired"] = {"high": "medium"}
    result = result_of(api, draft)
    by_class = {one["class_id"]: one for one in result["classes"]}
    assert (by_class["medium"]["draft"]["num"], by_class["high"]["draft"]) == (30, None)
    retired = [one["text"] for one in result["verdict"]["effects"] if one["class_id"] == "high"]
    assert retired == ["high is retired: medium would serve its 30 requests"]


def test_unknown_lengths_are_drawn_alike_each_time(api: APIClient, ready: Document) -> None:
    refuse("low")
    assert result_of(api, ready)["classes"] == result_of(api, ready)["classes"]


def test_only_the_window_counts(api: APIClient, ready: Document, answered: Callable[..., None]) -> None:
    answered(5, "low", ago_s=7200)
    windows = api.get("/api/v1/policies/traffic").json()["windows"]
    assert {one["window_s"]: one["num_requests"] for one in windows} == {900: 30, 3600: 30, 86_400: 35, None: 35}
    assert result_of(api, ready)["num_requests"] == 30


def test_of_too_many_the_newest_are_taken(
    api: APIClient, ready: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "MAX_REQUESTS", 10)
    result = result_of(api, ready)
    assert (result["num_requests"], result["is_cut"]) == (10, True)


def test_a_draft_with_mistakes_is_not_tried(api: APIClient, ready: Document) -> None:
    ready["classes"][1]["max_wait_s"] = 0.01
    answer = api.post(URL, {"document": ready})
    assert answer.status_code == 400
    assert [one["path"] for one in answer.json()["error"]["mistakes"]] == ["classes.1.max_wait_s"]


def test_without_traffic_there_is_nothing_to_try_on(api: APIClient, published: Document, worker: None) -> None:
    status, message = error_of(api.post(URL, {"document": published, "window_s": 3600}))
    assert (status, message) == (
        409,
        "No request was recorded in the last 1 hour. Choose a longer window, or send some requests.",
    )


def test_without_a_worker_nothing_can_be_replayed(
    api: APIClient, published: Document, answered: Callable[..., None]
) -> None:
    answered(3, "high", ago_s=60)
    status, message = error_of(api.post(URL, {"document": published}))
    assert (status, message.startswith("No live worker has published how long its steps take")) == (409, True)


def test_who_may_not_publish_may_not_try(viewer: User, ready: Document) -> None:
    client = APIClient()
    client.force_login(viewer)
    status, message = error_of(client.post(URL, {"document": ready}))
    assert (status, "may read policies but not try drafts" in message) == (403, True)
    assert client.get(URL).status_code == 200


def test_a_trial_is_in_the_audit(api: APIClient, ready: Document) -> None:
    trial = start(api, ready)
    api.delete(f"{URL}/{trial['id']}")
    known = entries_of("policy", f"{POOL}/trial-{trial['id']}")
    assert [(one.actor, one.action) for one in known] == [("ada", "cancel trial"), ("ada", "try")]


def test_a_cancelled_trial_does_not_run(api: APIClient, ready: Document) -> None:
    trial = start(api, ready)
    assert api.delete(f"{URL}/{trial['id']}").json()["state"] == "cancelled"
    assert run_trial(trial["id"]) == "cancelled"


def test_a_trial_cancelled_while_it_runs_has_no_result(
    api: APIClient, ready: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = start(api, ready)
    simulate = trials._simulate

    def cancelled_meanwhile(trial_id: int, job: Any) -> Any:
        api.delete(f"{URL}/{trial_id}")
        return simulate(trial_id, job)

    monkeypatch.setattr(trials, "_simulate", cancelled_meanwhile)
    assert run_trial(trial["id"]) == "cancelled"
    assert api.get(f"{URL}/{trial['id']}").json()["result"] is None


def test_a_new_trial_ends_the_same_operators_earlier_one(api: APIClient, ready: Document) -> None:
    first, second = start(api, ready), start(api, strict(ready))
    states = {one["id"]: one["state"] for one in api.get(URL).json()["results"]}
    assert states == {first["id"]: "cancelled", second["id"]: "queued"}


def running(document: Document, heard_ago_s: float) -> Trial:
    """A trial of another operator that a Celery process took up, and last told of so long ago."""
    now = datetime.now(UTC)
    return Trial.objects.create(
        pool=POOL, author="bo", base_version=1, document=document, state="running", created_at=now, started_at=now,
        heard_at=now - timedelta(seconds=heard_ago_s), num_done=7, num_total=60,
    )  # fmt: skip


def test_one_trial_runs_at_a_time_and_the_next_waits(api: APIClient, ready: Document) -> None:
    other, trial = running(ready, heard_ago_s=1), start(api, ready)
    assert (run_trial(trial["id"]), run_next_trial()) == ("queued", None)
    other.delete()
    assert run_next_trial() == trial["id"]
    assert run_trial(trial["id"]) == "done"


def test_when_a_trial_ends_the_next_one_begins(
    api: APIClient, ready: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[int] = []
    monkeypatch.setattr(run_trial, "delay", queued.append)
    first = start(api, ready)
    waiting = Trial.objects.create(
        pool=POOL, author="bo", base_version=1, document=ready, created_at=datetime.now(UTC)
    )
    queued.clear()
    run_trial(first["id"])
    assert queued == [waiting.pk]


def test_a_trial_whose_celery_was_killed_is_run_again_before_the_next(api: APIClient, ready: Document) -> None:
    lost, waiting = running(ready, heard_ago_s=trials.SILENT_S + 1), start(api, ready)
    assert run_next_trial() == lost.pk
    assert [run_trial(lost.pk), run_trial(waiting["id"])] == ["done", "done"]


def test_a_task_that_comes_twice_leaves_the_trial_to_who_runs_it(api: APIClient, ready: Document) -> None:
    taken = running(ready, heard_ago_s=1)
    assert run_trial(taken.pk) == "running"
    taken.refresh_from_db()
    assert (taken.num_done, taken.result) == (7, None)


def test_a_simulation_that_takes_too_long_is_ended(
    api: APIClient, ready: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "TIME_LIMIT_S", 0.0)
    trial = start(api, ready)
    assert run_trial(trial["id"]) == "failed"
    assert "Choose a shorter window." in api.get(f"{URL}/{trial['id']}").json()["problem"]


def test_a_trial_that_nobody_runs_is_given_up(api: APIClient, ready: Document) -> None:
    trial = start(api, ready)
    Trial.objects.filter(pk=trial["id"]).update(created_at=datetime.now(UTC) - timedelta(hours=1))
    body = api.get(f"{URL}/{trial['id']}").json()
    assert (body["state"], body["problem"].startswith("Nobody ran it within 15 min")) == ("failed", True)


def test_the_worker_that_leaves_meanwhile_is_named_as_the_reason(api: APIClient, ready: Document) -> None:
    trial = start(api, ready)
    redis_client().delete(keys.WORKER_LEASES.of(POOL))
    assert run_trial(trial["id"]) == "failed"
    assert api.get(f"{URL}/{trial['id']}").json()["problem"] == trials.NO_WORKER
