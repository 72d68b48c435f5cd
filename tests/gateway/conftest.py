"""A real gateway on a free port, real Postgres and Valkey, a worker that says what the test wants."""

from __future__ import annotations

import asyncio
import io
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis
import uvicorn
from celery.signals import task_postrun
from django.conf import settings
from django.db import connection

from controlplane.celery import app as celery_app
from controlplane.gateway.app import build
from controlplane.gateway.runtime import GatewayRuntime, current
from controlplane.gateway.tokenizer import TextModel, load_text_model
from controlplane.policies.services import publish
from controlplane.tenants.services import create_key, create_tenant
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.protocol.messages import Payload
from tests.gateway.scripted_worker import ScriptedWorker
from tests.gateway.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
POOL = "default"
MODEL_NAME = "tiny"
ANSWER = "The gateway speaks text and the workers speak tokens."


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "it") -> Any:
    """Poll until the condition holds; its value. Fails loudly after the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / MODEL_NAME)


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> TextModel:
    return load_text_model(str(tiny_model_dir))


@pytest.fixture
def database(transactional_db: None) -> None:
    """The migrated test database, with real commits: the gateway's threads must see them."""


def _give_connection_back(**_: Any) -> None:
    if threading.current_thread() is not threading.main_thread():
        connection.close()


@pytest.fixture(autouse=True)
def _completions_at_once() -> Iterator[None]:
    """Celery's task runs where it is sent: no broker's worker is under test here."""
    celery_app.conf.task_always_eager = True
    task_postrun.connect(_give_connection_back)
    yield
    task_postrun.disconnect(_give_connection_back)
    celery_app.conf.task_always_eager = False


def announce(policy: Policy) -> None:
    """Publish a policy as operators do."""
    publish(pool=POOL, document=policy.model_dump(mode="json"), comment="for a test", author="ada")


@pytest.fixture
def policy(database: None, redis_url: str) -> Policy:
    """The scenario's three classes, live."""
    live = default_policy()
    announce(live)
    return live


@dataclass
class Gateway:
    """A running server."""

    url: str
    runtime: GatewayRuntime
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive(), self._where_it_hangs()

    def _where_it_hangs(self) -> str:
        text = io.StringIO()
        for task in asyncio.all_tasks(self.runtime.loop):
            task.print_stack(file=text)
        for name, frame in sys._current_frames().items():
            text.write(f"thread {name}:\n{''.join(traceback.format_stack(frame))}")
        return text.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_gateway(model_dir: Path, **overrides: Any) -> Gateway:
    """uvicorn on a free port, in a thread of this process."""
    import dataclasses

    chosen = {"model": str(model_dir), "model_name": MODEL_NAME, "gateway_id": "web-test", **overrides}
    settings.TIDEGATE = dataclasses.replace(settings.TIDEGATE, **chosen)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(build(), port=port, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive(), what="the gateway's start")
    return Gateway(f"http://127.0.0.1:{port}", current(), server, thread)


@pytest.fixture
def gateway(tiny_model_dir: Path, policy: Policy) -> Iterator[Gateway]:
    before = settings.TIDEGATE
    running = start_gateway(tiny_model_dir)
    yield running
    running.stop()
    settings.TIDEGATE = before


@pytest.fixture
def worker(redis_url: str, policy: Policy, tiny_model: TextModel) -> Iterator[ScriptedWorker]:
    """Answers everything with ANSWER."""
    tokens = tiny_model.tokenizer.encode(ANSWER).ids

    def answer(_: Payload) -> list[int]:
        return list(tokens)

    running = ScriptedWorker(redis_url, POOL, answer, eos_id=next(iter(tiny_model.eos_ids))).start()
    yield running
    running.stop()


@dataclass
class Tenant:
    slug: str
    id: int
    token: str


def make_tenant(default_class: str = "", allowed: tuple[str, ...] = (), **fields: Any) -> Tenant:
    """A tenant of its own with one key."""
    slug = f"t-{uuid.uuid4().hex[:12]}"
    tenant = create_tenant(slug=slug, name=slug, actor="ada", **fields)
    key = create_key(
        tenant=tenant, name="test", actor="ada", default_class=default_class, allowed_classes=list(allowed)
    )
    return Tenant(slug, tenant.pk, key.token)


@pytest.fixture
def tenant(database: None) -> Tenant:
    return make_tenant(default_class="medium", allowed=("high", "low"), retention="days", retention_days=1)


@pytest.fixture
def client(worker: ScriptedWorker, gateway: Gateway, tenant: Tenant) -> Iterator[openai.OpenAI]:
    """The unmodified openai client, once a worker is known."""
    wait_until(lambda: gateway.runtime.view.has_worker, what="the worker's lease")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=tenant.token, max_retries=0, timeout=20) as one:
        yield one


@pytest.fixture
def http(worker: ScriptedWorker, gateway: Gateway, tenant: Tenant) -> Iterator[httpx.Client]:
    """A plain HTTP client with the tenant's key."""
    wait_until(lambda: gateway.runtime.view.has_worker, what="the worker's lease")
    headers = {"Authorization": f"Bearer {tenant.token}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=20) as one:
        yield one


@pytest.fixture
def valkey(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as one:
        yield one
