"""`manage.py seed_demo`: a first visit works, a second start keeps everything."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from controlplane.policies import selectors
from controlplane.tenants.models import ApiKey
from controlplane.tenants.selectors import find_key
from controlplane.tenants.services import revoke_key

from .conftest import POOL, Document


@pytest.fixture
def policy_file(tmp_path: Path, document: Document) -> Path:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "demo.json"


def seed(policy_file: Path, out: Path) -> dict[str, Any]:
    call_command("seed_demo", policy=policy_file, out=out, stdout=io.StringIO())
    content: dict[str, Any] = json.loads(out.read_text())
    return content


@pytest.fixture
def seeded(db: None, policy_file: Path, out: Path) -> dict[str, Any]:
    return seed(policy_file, out)


def test_the_operator_can_sign_in(seeded: dict[str, Any]) -> None:
    assert authenticate(username=seeded["username"], password=seeded["password"]).is_staff


def test_there_is_a_key_for_every_class(seeded: dict[str, Any]) -> None:
    found = {class_id: find_key(token).default_class for class_id, token in seeded["api_keys"].items()}
    assert found == {"high": "high", "medium": "medium", "low": "low"}


def test_a_key_may_ask_for_less_urgent_classes_only(seeded: dict[str, Any]) -> None:
    assert find_key(seeded["api_keys"]["medium"]).allowed_classes == {"medium", "low"}


def test_the_policy_is_published(seeded: dict[str, Any], document: Document) -> None:
    assert selectors.active(POOL).document == document


def test_only_its_owner_may_read_the_file(seeded: dict[str, Any], out: Path) -> None:
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_second_start_changes_nothing(seeded: dict[str, Any], policy_file: Path, out: Path) -> None:
    assert (seed(policy_file, out), ApiKey.objects.count(), selectors.active(POOL).version) == (seeded, 3, 1)


def test_what_others_wrote_into_the_file_stays(seeded: dict[str, Any], policy_file: Path, out: Path) -> None:
    out.write_text(json.dumps({**seeded, "url": "http://127.0.0.1:8000"}))
    assert seed(policy_file, out)["url"] == "http://127.0.0.1:8000"


def test_a_revoked_key_alone_is_made_anew(seeded: dict[str, Any], policy_file: Path, out: Path) -> None:
    revoke_key(key_id=find_key(seeded["api_keys"]["low"]).key_id, actor="ada")
    again = seed(policy_file, out)["api_keys"]
    assert (again["high"], again["low"] == seeded["api_keys"]["low"]) == (seeded["api_keys"]["high"], False)


def test_a_lost_file_means_a_new_password(seeded: dict[str, Any], policy_file: Path, out: Path) -> None:
    out.unlink()
    again = seed(policy_file, out)
    assert authenticate(username="operator", password=again["password"]) is not None
    assert User.objects.count() == 1


def test_a_bad_policy_is_refused_with_every_path(
    db: None, policy_file: Path, out: Path, document: Document
) -> None:
    document["classes"][0]["rank"] = -1
    policy_file.write_text(json.dumps(document))
    with pytest.raises(CommandError, match=r"classes\.0\.rank"):
        seed(policy_file, out)
    assert not out.exists()


def test_a_broken_file_is_not_overwritten(db: None, policy_file: Path, out: Path) -> None:
    out.write_text("{")
    with pytest.raises(CommandError, match="Mend it"):
        seed(policy_file, out)


def test_another_policy_replaces_the_live_one_only_when_asked_to(
    seeded: dict[str, Any], policy_file: Path, out: Path, document: Document
) -> None:
    document["classes"][0]["weight"] += 1
    policy_file.write_text(json.dumps(document))
    seed(policy_file, out)
    kept = selectors.active(POOL).version
    call_command("seed_demo", policy=policy_file, out=out, replace_policy=True, stdout=io.StringIO())
    live = selectors.active(POOL)
    assert (kept, live.version, live.comment, live.document) == (1, 2, "Measured again", document)
