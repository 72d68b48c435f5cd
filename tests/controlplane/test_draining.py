"""Taking a worker out and letting it in again, with a real worker process that obeys."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from controlplane.audit.selectors import entries_of
from controlplane.fleet import selectors, services
from tests.worker.fleet import POOL, Fleet, wait_until

URL = "/api/v1/fleet/workers/w1/drain"


@pytest.fixture(autouse=True)
def _pool(settings: Any) -> None:
    settings.TIDEGATE = dataclasses.replace(settings.TIDEGATE, pool=POOL)


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(redis_url, tmp_path)
    yield made
    made.end()


@pytest.fixture
def worker(fleet: Fleet) -> Fleet:
    fleet.start("w1", step_s=0.02)
    wait_until(lambda: selectors.workers(POOL), "a lease")
    return fleet


def is_draining(fleet: Fleet) -> bool:
    info = fleet.client.info("w1")
    return info is not None and info.draining


def test_a_drained_worker_ends_what_it_runs_and_takes_no_more(api: APIClient, worker: Fleet) -> None:
    client = worker.client
    client.send("runs", list(range(5, 15)), max_tokens=60)
    client.wait_for_tokens("runs", 3)
    assert api.post(URL).json() == {"id": "w1", "draining": True}
    wait_until(lambda: is_draining(worker), "draining")
    client.send("comes", list(range(5, 15)))
    client.wait_for_end("runs")
    assert (client.outputs["runs"].attempt, client.num_tokens("comes")) == (0, 0)
    assert api.delete(URL).json() == {"id": "w1", "draining": False}
    client.wait_for_end("comes")


def test_both_orders_are_in_the_audit_once(api: APIClient, worker: Fleet) -> None:
    for order in (api.post, api.post, api.delete, api.delete):
        assert order(URL).status_code == 202
    known = entries_of("worker", f"{POOL}/w1")
    assert [(one.actor, one.action) for one in known] == [("ada", "resume"), ("ada", "drain")]


def test_a_worker_that_is_not_there_cannot_be_drained(api: APIClient) -> None:
    answer = api.post(URL)
    assert (answer.status_code, "no worker w1" in answer.json()["error"]["message"]) == (404, True)


def test_staff_without_the_right_may_not_drain(viewer: User) -> None:
    client = APIClient()
    client.force_login(viewer)
    assert client.post(URL).status_code == 403


def test_an_order_that_redis_did_not_take_is_not_in_the_audit(
    api: APIClient, worker: Fleet, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(redis.Redis):
        def set(self, *args: Any, **options: Any) -> Any:
            raise redis.ConnectionError("gone")

    deaf = Deaf.from_url(redis_url)
    monkeypatch.setattr(services, "redis_client", lambda: deaf)
    assert api.post(URL).status_code == 503
    assert not entries_of("worker", f"{POOL}/w1").exists()
