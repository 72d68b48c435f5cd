"""The API's own description is complete, valid, and true of what the API answers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.test import Client
from hypothesis import HealthCheck, given, settings
from rest_framework.test import APIClient

from controlplane import urls
from scheduler_worker.core.policy import policy_schema

from .conftest import Document

Credentials = dict[str, dict[str, str]]


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


@pytest.fixture
def signed_in(operator: User) -> Iterator[Credentials]:
    """Cookies and headers of a browser. Requests stay on the test's connection, as with Django's client."""
    session = Client()
    session.force_login(operator)
    token = session.get("/api/v1/session").json()["csrf_token"]
    cookies = {name: morsel.value for name, morsel in session.cookies.items()}
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield {"cookies": cookies, "headers": {"X-CSRFToken": token}}
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


EVERY = list(HealthCheck)
CHECKS = (
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
)


@pytest.mark.timeout(300)
def test_answers_to_arbitrary_input_are_as_described(signed_in: Credentials, published: Document) -> None:
    """Every operation, valid and invalid input alike: no failure of ours, and every body fits its schema."""
    described = schemathesis.openapi.from_wsgi("/api/schema", get_wsgi_application())
    operations = [one.ok() for one in described.get_all_operations()]
    for operation in operations:
        if operation.label != "DELETE /api/v1/session":  # it would sign out
            drive(operation, signed_in)


def drive(operation: Any, credentials: Credentials) -> None:
    @settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=EVERY)
    @given(case=operation.as_strategy())
    def answer(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, **credentials)

    answer()


def test_the_headers_of_that_test_open_the_door(signed_in: Credentials, published: Document) -> None:
    described = schemathesis.openapi.from_wsgi("/api/schema", get_wsgi_application())
    case = described["/api/v1/policies/{version}/rollback"]["POST"].Case(
        path_parameters={"version": 1}, body={"comment": ""}, media_type="application/json"
    )
    assert case.call(**signed_in).status_code == 201
