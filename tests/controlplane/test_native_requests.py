"""Requests that are sent now and fetched later, through the whole ASGI app; behind it a scripted worker."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from django.conf import settings
from django.db import connections

from controlplane.gateway import runtime
from scheduler_worker.core.policy import default_policy
from tests.gateway.conftest import (
    ANSWER,
    MODEL_NAME,
    Tenant,
    _completions_at_once,
    announce,
    free_port,
    make_tenant,
    tiny_model,
    tiny_model_dir,
    wait_until,
)
from tests.gateway.scripted_worker import ScriptedWorker

__all__ = ["_completions_at_once", "tiny_model", "tiny_model_dir"]

ROUTE = "/api/v1/requests"
JSON = {"Content-Type": "application/json"}
CHAT = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def worker(redis_url: str, tiny_model: Any) -> Iterator[ScriptedWorker]:
    """Answers everything with ANSWER, once its gate is open."""
    tokens = tiny_model.tokenizer.encode(ANSWER).ids
    running = ScriptedWorker(
        redis_url, "default", lambda _: list(tokens), eos_id=next(iter(tiny_model.eos_ids))
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def url(transactional_db: None, worker: ScriptedWorker, tiny_model_dir: Path) -> Iterator[str]:
    """The web process's app: gateway, Django, websockets."""
    from controlplane.asgi import application

    before = settings.TIDEGATE
    settings.TIDEGATE = dataclasses.replace(before, model=str(tiny_model_dir), model_name=MODEL_NAME)
    announce(default_policy())
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), what="the start")
    wait_until(lambda: runtime.current().view.has_worker, what="the worker's lease")
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive(), "the web process did not stop"
    settings.TIDEGATE = before
    connections.close_all()


@pytest.fixture
def tenant(transactional_db: None) -> Tenant:
    return make_tenant(default_class="medium")


@pytest.fixture
def http(url: str, tenant: Tenant) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {tenant.token}"}, timeout=20
    ) as client:
        yield client


def ended(http: httpx.Client, request_id: str) -> dict[str, Any]:
    """The request once it has ended."""

    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = http.get(f"{ROUTE}/{request_id}").json()
        return None if body["state"] in ("queued", "running") else body

    found: dict[str, Any] = wait_until(look, what="the end")
    return found


def test_an_accepted_request_has_an_address(http: httpx.Client) -> None:
    response = http.post(ROUTE, json=CHAT)
    assert (response.status_code, response.headers["Location"]) == (202, f"{ROUTE}/{response.json()['id']}")


def test_its_answer_can_be_fetched_later(http: httpx.Client) -> None:
    body = ended(http, http.post(ROUTE, json=CHAT).json()["id"])
    assert (body["state"], body["output"], body["finish_reason"]) == ("succeeded", ANSWER, "stop")


def test_its_times_are_those_of_gateway_and_worker(http: httpx.Client) -> None:
    timings = ended(http, http.post(ROUTE, json=CHAT).json()["id"])["timings"]
    assert 0 < timings["ttft_s"] <= timings["e2e_s"]


def test_a_text_prompt_is_completed_too(http: httpx.Client) -> None:
    body = http.post(ROUTE, json={"model": MODEL_NAME, "prompt": "Hello", "max_tokens": 50}).json()
    assert (body["endpoint"], ended(http, body["id"])["output"]) == ("requests.completions", ANSWER)


def test_it_can_be_cancelled(http: httpx.Client, worker: ScriptedWorker) -> None:
    worker.gate.clear()
    request_id = http.post(ROUTE, json=CHAT).json()["id"]
    assert http.delete(f"{ROUTE}/{request_id}").status_code == 202
    worker.gate.set()
    assert ended(http, request_id)["state"] == "cancelled"


def test_cancelling_what_has_ended_changes_nothing(http: httpx.Client) -> None:
    request_id = ended(http, http.post(ROUTE, json=CHAT).json()["id"])["id"]
    assert http.delete(f"{ROUTE}/{request_id}").json()["state"] == "succeeded"


@pytest.mark.parametrize(
    ("change", "status", "code", "path"),
    [
        ({"model": "other"}, 404, "model_not_found", "model"),
        ({"priority": "high"}, 403, "class_not_allowed", "priority"),
        ({"temperature": 9}, 400, "invalid_value", "temperature"),
        ({"tools": [{}]}, 400, "unsupported_parameter", "tools"),
    ],
)
def test_the_gateways_refusals_come_in_this_apis_shape(
    http: httpx.Client, change: dict[str, Any], status: int, code: str, path: str
) -> None:
    response = http.post(ROUTE, json={**CHAT, **change})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["mistakes"][0]["path"]) == (status, code, path)


def test_a_body_that_is_not_json_is_refused(http: httpx.Client) -> None:
    response = http.post(ROUTE, content=b"{", headers=JSON)
    assert (response.status_code, "not JSON" in response.json()["error"]["message"]) == (400, True)


def test_a_body_that_is_nested_too_deeply_is_refused(http: httpx.Client) -> None:
    response = http.post(ROUTE, content="[" * 100_000, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid")


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    response = http.post(ROUTE, content=b" " * (settings.TIDEGATE.max_body_bytes + 1), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_a_body_without_a_length_is_counted_while_it_is_read(http: httpx.Client) -> None:
    chunks = (b" " * 0x10000 for _ in range(16 * settings.TIDEGATE.max_body_bytes // 0x10000))
    response = http.post(ROUTE, content=chunks, headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_the_gateway_answers_beside_django(http: httpx.Client) -> None:
    assert http.get("/v1/models").json()["data"][0]["id"] == MODEL_NAME


def test_django_answers_beside_the_gateway(http: httpx.Client) -> None:
    assert http.get("/api/v1/session").json()["username"] == ""
