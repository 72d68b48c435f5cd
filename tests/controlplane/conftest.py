"""Real Postgres, real Valkey: an empty pair for each test."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.test import APIClient

from controlplane.common.connections import redis_client
from controlplane.inference.services import AcceptedRequest
from controlplane.policies.services import publish
from controlplane.tenants.services import NewKey, create_key, create_tenant
from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol.messages import CompletionRecord, Header, Payload, SamplingParams

POOL = "default"
PASSWORD = "correct horse battery staple"

Document = dict[str, Any]


@pytest.fixture(autouse=True)
def _empty_redis(redis_url: str) -> Iterator[None]:
    yield
    redis_client().flushall()


@pytest.fixture
def document() -> Document:
    """The scenario's policy as JSON: high, medium, low."""
    return default_policy().model_dump(mode="json")


@pytest.fixture
def published(db: None, document: Document) -> Document:
    """The document is live as v1."""
    publish(pool=POOL, document=document, comment="First policy", author="ada")
    return document


@pytest.fixture
def operator(db: None) -> User:
    return User.objects.create_superuser("ada", password=PASSWORD, first_name="Ada", last_name="Lovelace")


@pytest.fixture
def viewer(db: None) -> User:
    """Staff without rights of their own."""
    return User.objects.create_user("vic", password=PASSWORD, is_staff=True)


@pytest.fixture
def anonymous() -> APIClient:
    return APIClient(enforce_csrf_checks=True)


@pytest.fixture
def api(operator: User) -> APIClient:
    """The operator's client, past sign-in and CSRF."""
    client = APIClient()
    client.force_login(operator)
    return client


@pytest.fixture
def key(db: None) -> NewKey:
    """An API key of the tenant acme, whose retention is `terminal`."""
    tenant = create_tenant(slug="acme", name="Acme", actor="ada")
    return create_key(
        tenant=tenant, name="batch", actor="ada", default_class="low", allowed_classes=["medium"]
    )


@pytest.fixture
def program(key: NewKey) -> APIClient:
    """A client with acme's API key."""
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {key.token}")
    return client


@pytest.fixture
def accepted(key: NewKey) -> Callable[..., AcceptedRequest]:
    """Makes accepted requests of acme; keyword arguments override fields."""

    def make(**fields: Any) -> AcceptedRequest:
        request_id = fields.pop("request_id", str(uuid.uuid4()))
        gateway = fields.pop("gateway", "web-1")
        header = Header(
            request_id=request_id,
            class_id="low",
            tenant="acme",
            gateway=gateway,
            arrived_at=time.time(),
            num_prompt_tokens=3,
            max_tokens=16,
        )
        payload = Payload(request_id=request_id, token_ids=b"\1\0\0\0" * 3, sampling=SamplingParams())
        defaults = {
            "header": header,
            "payload": payload,
            "tenant_id": key.key.tenant_id,
            "key_id": key.key.pk,
            "endpoint": "chat.completions",
            "model": "smol",
            "prompt": [{"role": "user", "content": "Hello"}],
            "parameters": {"temperature": 0.5},
        }
        return AcceptedRequest(**{**defaults, **fields})

    return make


def completion(request_id: str, **fields: Any) -> CompletionRecord:
    """A success of two tokens; keyword arguments override fields."""
    defaults: dict[str, Any] = {
        "request_id": request_id,
        "state": "succeeded",
        "finish_reason": "stop",
        "finished_at": time.time(),
        "num_prompt_tokens": 3,
        "num_output_tokens": 2,
        "ttft_s": 0.25,
        "tpot_s": 0.05,
        "e2e_s": 0.3,
        "worker": "gpu-0",
        "text": "Hi there",
    }
    return CompletionRecord(**{**defaults, **fields})
