"""A gateway is killed; what it accepted is finished by another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import openai
import pytest
import redis
from django.db import connection

from controlplane.gateway import runtime
from controlplane.inference.models import InferenceRequest
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys
from tests.gateway.conftest import (
    ANSWER,
    MODEL_NAME,
    POOL,
    ROOT,
    Gateway,
    Tenant,
    free_port,
    start_gateway,
    wait_until,
)
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]


class Victim:
    """A web process of its own, to be killed."""

    def __init__(self, model_dir: Path, token: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rsplit(":", 1)[1]
        command = [sys.executable, "-m", "uvicorn", "controlplane.asgi:application", "--port", port]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment(model_dir))
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=30)

    def _environment(self, model_dir: Path) -> dict[str, str]:
        url = urlsplit(os.environ["TIDEGATE_DATABASE_URL"])._replace(
            path="/" + connection.settings_dict["NAME"]
        )
        return os.environ | {
            "TIDEGATE_DATABASE_URL": urlunsplit(url),
            "TIDEGATE_MODEL": str(model_dir),
            "TIDEGATE_MODEL_NAME": MODEL_NAME,
            "TIDEGATE_GATEWAY_ID": "victim",
        }

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "the web process ended"
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, **fields: Any) -> Iterator[Any]:
        return iter(
            self.client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True, **fields)
        )

    def kill(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)


@pytest.fixture
def victim(tiny_model_dir: Path, policy: Policy, worker: ScriptedWorker, tenant: Tenant) -> Iterator[Victim]:
    one = Victim(tiny_model_dir, tenant.token)
    try:
        wait_until(one.is_ready, timeout_s=30, what="readiness")
        yield one
    finally:
        one.kill()


def end_lease(valkey: redis.Redis, name: str = "victim") -> str:
    """As if ten seconds had gone by; the full name of the gateway."""
    key = keys.GATEWAY_LEASES.of(POOL)
    found = next(one for one in valkey.zrange(key, 0, -1) if one.startswith(name.encode()))
    valkey.zadd(key, {found: 0})
    return str(found.decode())


def ended_row() -> InferenceRequest:
    return wait_until(
        lambda: InferenceRequest.objects.exclude(state="accepted").first(), timeout_s=20, what="the record"
    )


def test_a_stream_of_a_killed_gateway_is_finished_by_another(
    victim: Victim, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.step_s = 0.05
    stream = victim.ask()
    next(stream)
    victim.kill()
    end_lease(valkey)
    row = ended_row()
    assert (row.state, row.finish_reason, row.output) == ("succeeded", "stop", ANSWER)


def test_an_adopted_request_stops_at_its_stop_string(
    victim: Victim, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.step_s = 0.05
    stream = victim.ask(stop="speak")
    next(stream)
    worker.gate.clear()
    victim.kill()
    end_lease(valkey)
    worker.gate.set()
    assert ended_row().output == "The gateway "


def test_what_ended_after_the_death_is_recorded_too(
    victim: Victim, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.gate.clear()
    open_stream(victim)
    wait_until(lambda: worker.running, what="the claim")
    victim.kill()
    worker.gate.set()
    wait_until(lambda: worker.finishes, what="the worker's last row")
    end_lease(valkey)
    assert ended_row().output == ANSWER


def test_a_request_that_still_waited_is_served_and_recorded(
    victim: Victim, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.claims = False
    open_stream(victim)
    wait_until(lambda: valkey.hlen(keys.HEADERS.of(POOL)), what="the queueing")
    victim.kill()
    end_lease(valkey)
    worker.claims = True
    assert ended_row().output == ANSWER


def test_a_lease_runs_out_by_itself_and_the_dead_gateways_keys_go(
    victim: Victim, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    names = [one.decode() for one in valkey.zrange(keys.GATEWAY_LEASES.of(POOL), 0, -1)]
    name = next(one for one in names if one.startswith("victim"))
    worker.step_s = 0.05
    next(victim.ask())
    victim.kill()
    left = [keys.OUTPUT.of(POOL, name), keys.OWNED.of(POOL, name)]
    assert valkey.exists(*left) == 2
    wait_until(lambda: not valkey.exists(*left), timeout_s=20, what="the clearing")
    assert ended_row().output == ANSWER
    assert valkey.zscore(keys.GATEWAY_LEASES.of(POOL), name) is None


def test_a_stop_that_cannot_wait_hands_open_requests_to_another_gateway(
    worker: ScriptedWorker,
    gateway: Gateway,
    client: openai.OpenAI,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "DRAIN_S", 0.2)
    gateway.server.config.timeout_graceful_shutdown = 1
    worker.step_s = 0.1
    stream = iter(client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True))
    next(stream)
    worker.gate.clear()
    gateway.stop()
    worker.gate.set()
    second = start_gateway(tiny_model_dir)
    try:
        row = ended_row()
    finally:
        second.stop()
    assert (row.state, row.output, worker.cancelled) == ("succeeded", ANSWER, [])


def open_stream(victim: Victim) -> None:
    """Send a request and do not wait for the answer."""
    import threading

    def send() -> None:
        try:
            list(victim.ask())
        except openai.APIError:
            return

    threading.Thread(target=send, daemon=True).start()
