"""`manage.py seed_demo`: what a first visit needs. Run again, it keeps everything that still works."""

from __future__ import annotations

import json
import os
import secrets
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import authenticate, get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from controlplane.common.errors import Invalid
from controlplane.policies import selectors, services
from controlplane.tenants.selectors import find_key
from controlplane.tenants.services import create_key, ensure_tenant
from scheduler_worker.core.policy import Policy

ACTOR: Final = "seed_demo"
USERNAME: Final = "operator"
TENANT: Final = "demo"


class Command(BaseCommand):
    help = (
        "Makes an operator's login, a tenant with one API key per class, and publishes the policy if there "
        "is none. Writes them to a JSON file; run again, it keeps what is in that file and still works."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--policy", type=Path, required=True, help="JSON file with the policy document")
        parser.add_argument(
            "--json", type=Path, required=True, dest="out", help="file for login and keys (mode 0600)"
        )
        parser.add_argument(
            "--replace-policy", action="store_true", help="publish the policy though another is live"
        )
        parser.add_argument("--username", default=USERNAME, help=f"the operator's name; default {USERNAME}")

    def handle(
        self, *args: Any, policy: Path, out: Path, username: str, replace_policy: bool = False, **options: Any
    ) -> None:
        known = _read_json(out) if out.exists() else {}
        with transaction.atomic():
            live = _ensure_policy(policy, replace_policy)
            seeded = {
                "username": username,
                "password": _ensure_operator(username, known),
                "tenant": TENANT,
                "api_keys": _ensure_keys(live, known),
            }
        _write_private(out, {**known, **seeded})
        self.stdout.write(f"Wrote the login of {username} and {len(seeded['api_keys'])} API keys to {out}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{path} cannot be read: {error}. Mend it, or remove it to make new keys."
        ) from error
    if not isinstance(content, dict):
        raise CommandError(f"{path} must hold a JSON object, not a {type(content).__name__}.")
    return content


def _ensure_policy(path: Path, replace: bool) -> Policy:
    """The live policy; the file's, if none was published or it is to be replaced."""
    live = selectors.find_active(settings.TIDEGATE.pool)
    document = _read_json(path) if live is None or replace else live.document
    if live is not None and live.document == document:
        return Policy.model_validate(live.document)
    try:
        version = services.publish(
            pool=settings.TIDEGATE.pool,
            document=document,
            comment="Measured again" if live else "First policy",
            author=ACTOR,
        )
    except Invalid as error:
        mistakes = "\n".join(f"  {one.path}: {one.message}" for one in error.mistakes)
        raise CommandError(f"{path} cannot be published:\n{mistakes}") from error
    return Policy.model_validate(version.document)


def _ensure_operator(username: str, known: Mapping[str, Any]) -> str:
    """The operator's password: the known one if it still opens the door, else a new one."""
    password = known.get("password")
    if isinstance(password, str) and authenticate(username=username, password=password) is not None:
        return password
    user, _ = get_user_model().objects.get_or_create(username=username)
    password = secrets.token_urlsafe(15)
    user.is_staff = user.is_superuser = user.is_active = True
    user.set_password(password)
    user.save()
    return password


def _ensure_keys(policy: Policy, known: Mapping[str, Any]) -> dict[str, str]:
    """One key per class, good for its own class and the less urgent ones."""
    keys = known.get("api_keys")
    usable = keys if isinstance(keys, dict) else {}
    return {one.id: _ensure_key(policy, one.id, usable.get(one.id)) for one in policy.classes}


def _ensure_key(policy: Policy, class_id: str, token: object) -> str:
    if isinstance(token, str) and find_key(token) is not None:
        return token
    rank = policy.find(class_id).rank
    tenant = ensure_tenant(slug=TENANT, name="Demo", actor=ACTOR)
    new = create_key(
        tenant=tenant,
        name=f"demo, {class_id}",
        actor=ACTOR,
        default_class=class_id,
        allowed_classes=[one.id for one in policy.classes if one.rank > rank],
    )
    return new.token


def _write_private(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at once; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    draft.replace(path)
