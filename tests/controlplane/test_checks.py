"""System checks find what is configured but cannot work, and say how to mend it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from controlplane.common import checks
from controlplane.common.connections import redis_client


def found(messages: list[Any]) -> list[str]:
    assert all(one.hint for one in messages)
    return [one.id for one in messages]


@pytest.fixture
def evicting() -> Iterator[None]:
    redis_client().config_set("maxmemory-policy", "allkeys-lru")
    yield
    redis_client().config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_keeps_everything_is_fine() -> None:
    assert found(checks.check_redis()) == []


def test_a_redis_that_evicts_is_an_error(evicting: None) -> None:
    assert found(checks.check_redis()) == ["tidegate.E003"]


def test_a_redis_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = redis.Redis(host="127.0.0.1", port=1, socket_connect_timeout=1)
    monkeypatch.setattr(checks, "redis_client", lambda: nowhere)
    assert found(checks.check_redis()) == ["tidegate.E002"]


def test_a_frontend_that_is_not_built_is_a_warning(settings: Any, tmp_path: Path) -> None:
    settings.FRONTEND_DIST = tmp_path
    assert found(checks.check_frontend()) == ["tidegate.W001"]


def test_debug_pages_are_an_error_in_production(settings: Any) -> None:
    settings.TIDEGATE = dataclasses.replace(settings.TIDEGATE, debug=True)
    assert found(checks.check_debug()) == ["tidegate.E001"]
