"""The charts' past over REST, and Prometheus' figures."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client

from controlplane.telemetry import folder, services
from scheduler_worker.protocol.messages import Device
from tests.telemetry.builders import T0, event, policy, row
from tests.telemetry.publisher import Publisher
from tests.telemetry.test_rollups import POOL, rollups
from tests.telemetry.test_takeover import _restored, _until

pytestmark = pytest.mark.django_db(transaction=True)

Running = Callable[[], AbstractAsyncContextManager[None]]
URL = "/api/v1/telemetry/history"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_history_needs_a_session(transactional_db: None) -> None:
    assert Client().get(URL).status_code in (401, 403)


@pytest.mark.parametrize(("name", "num", "point_s"), [("15m", 90, 10), ("1h", 360, 10), ("6h", 70, 60)])
def test_history_goes_as_far_back_as_asked(client: Client, name: str, num: int, point_s: int) -> None:
    services.store(POOL, rollups(420))
    answer = client.get(URL, {"range": name, "until": T0 + 4200}).json()
    assert (len(answer["points"]), answer["point_s"]) == (num, point_s)


def test_an_unknown_range_is_refused_with_its_path(client: Client) -> None:
    answer = client.get(URL, {"range": "1y"})
    assert answer.status_code == 400
    assert [mistake["path"] for mistake in answer.json()["error"]["mistakes"]] == ["range"]


async def test_history_ends_with_points_that_are_not_stored_yet(
    client: Client, publisher: Publisher, running_folder: Running
) -> None:
    await publisher.announce(policy())
    await publisher.requests(3, age_s=13)
    async with running_folder():
        await _until(_restored)
        await _until(sync_to_async(lambda: folder.current().points_after(0)))  # type: ignore[union-attr]
        answer = await sync_to_async(client.get)(URL)
    assert [point["ttft"]["high"]["num"] for point in answer.json()["points"]] == [3]


async def scraped(publisher: Publisher, running_folder: Running) -> str:
    """`/metrics` after a few requests, a preemption and a worker's word."""
    await publisher.announce(policy())
    await publisher.requests(4, ttft_s=0.05)
    await publisher.requests(1, ttft_s=0.5, met=False)
    preempted = event(0, "preempted", "preempted_by_priority", "low")
    device = Device(kind="cuda", name="H200", busy=0.9, power_w=600)
    figures: dict[str, Any] = {"step_p50_s": 0.02, "step_p99_s": 0.03, "overhead_p50_s": 0.001}
    await publisher.worker(device=device, num_steps=7, rows=(row("a"),), events=(preempted,), **figures)
    async with running_folder():
        await _until(_restored)
        answer = await sync_to_async(Client().get)("/metrics")
    return answer.content.decode()


async def test_latencies_are_histograms(publisher: Publisher, running_folder: Running) -> None:
    text = await scraped(publisher, running_folder)
    buckets = dict(
        re.findall(r'tidegate_ttft_seconds_bucket\{class="high",le="([^"]+)",pool="default"\} (\S+)', text)
    )
    assert (buckets["0.05"], buckets["0.5"], buckets["+Inf"]) == ("4.0", "5.0", "5.0")


async def test_counters_and_levels_are_there(publisher: Publisher, running_folder: Running) -> None:
    text = await scraped(publisher, running_folder)
    assert 'tidegate_worker_steps_total{pool="default",worker="gpu0"} 7.0' in text
    assert 'tidegate_requests_met_total{class="high",pool="default"} 4.0' in text
    assert 'tidegate_running_requests{class="high",pool="default"} 1.0' in text
    assert 'tidegate_policy_version{pool="default"} 41.0' in text


async def test_every_metric_is_documented_and_every_documented_one_exists(
    publisher: Publisher, running_folder: Running
) -> None:
    text = await scraped(publisher, running_folder)
    served = set(re.findall(r"^# TYPE (tidegate_\w+) ", text, re.MULTILINE))
    documented = set(re.findall(r"^\| `(tidegate_\w+)`", DOCS.read_text(), re.MULTILINE))
    assert served == documented


def test_without_a_folder_there_is_nothing_to_scrape(transactional_db: None) -> None:
    answer = Client().get("/metrics")
    assert (answer.status_code, answer.content) == (200, b"")


TOKEN = "t" * 40


@pytest.fixture
def token(settings: Any) -> str:
    settings.TIDEGATE = replace(settings.TIDEGATE, metrics_token=TOKEN)
    return TOKEN


def test_without_a_token_metrics_answer_this_host() -> None:
    assert [Client().get("/metrics", REMOTE_ADDR=one).status_code for one in ("127.0.0.1", "::1")] == [
        200,
        200,
    ]


@pytest.mark.parametrize(
    "request_of",
    [{"REMOTE_ADDR": "10.0.0.7"}, {"REMOTE_ADDR": ""}, {"headers": {"X-Forwarded-For": "10.0.0.7"}}],
)
def test_without_a_token_metrics_refuse_others_and_say_how_to_mend_it(request_of: dict[str, Any]) -> None:
    answer = Client().get("/metrics", **request_of)
    assert answer.status_code == 403
    assert "TIDEGATE_METRICS_TOKEN" in answer.json()["error"]["message"]


def test_with_a_token_metrics_answer_whoever_sends_it(token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    assert Client().get("/metrics", headers=headers, REMOTE_ADDR="10.0.0.7").status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \u00fc"}]
)
def test_with_a_token_metrics_refuse_who_does_not_know_it_even_on_this_host(
    token: str, headers: dict[str, str]
) -> None:
    answer = Client().get("/metrics", headers=headers)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
