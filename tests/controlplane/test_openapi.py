"""The API's own description is complete, valid, and true of what the API answers."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import schemathesis
from django.core.management import call_command
from hypothesis import HealthCheck, settings
from rest_framework.test import APIClient

from controlplane import urls
from scheduler_worker.core.policy import policy_schema

from .conftest import Document


@pytest.fixture
def description(db: None) -> dict[str, Any]:
    body: dict[str, Any] = APIClient().get("/api/schema").json()
    return body


def test_the_description_is_valid_and_has_no_gaps() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=io.StringIO())


def test_every_route_of_the_api_is_described(description: dict[str, Any]) -> None:
    described = {path: set(verbs) for path, verbs in description["paths"].items()}
    for route in urls.api:
        path = "/api/v1/" + re.sub(r"<\w+:(\w+)>", r"{\1}", str(route.pattern))
        assert described[path] == {
            verb for verb in ("get", "post", "delete") if hasattr(route.callback.cls, verb)
        }


def test_the_policy_is_described_by_the_core_itself(description: dict[str, Any]) -> None:
    described = description["components"]["schemas"]["Policy"]["properties"]
    assert described.keys() == policy_schema()["properties"].keys()


def test_the_bodies_of_requests_are_described_by_the_gateway_itself(description: dict[str, Any]) -> None:
    assert "messages" in description["components"]["schemas"]["ChatBody"]["properties"]


def test_every_operation_may_answer_with_the_one_error(description: dict[str, Any]) -> None:
    operations = [verb for verbs in description["paths"].values() for verb in verbs.values()]
    references = {
        str(one["responses"]["default"]["content"]["application/json"]["schema"]) for one in operations
    }
    assert references == {"{'$ref': '#/components/schemas/Error'}"}
