"""Writing tenants and their keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import record
from controlplane.common.errors import NotFound
from controlplane.tenants.models import ApiKey, Tenant
from controlplane.tenants.selectors import digest_of

TOKEN_PREFIX: Final = "tg_"
SHOWN_CHARACTERS: Final = 9
PLAYGROUND_TENANT: Final = "playground"
PLAYGROUND_KEY_TTL: Final = timedelta(hours=8)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only moment in which its text is known."""

    token: str
    key: ApiKey


@transaction.atomic
def create_tenant(*, slug: str, name: str, actor: str, **fields: Any) -> Tenant:
    """A new tenant; `fields` are those of the model."""
    tenant = Tenant(slug=slug, name=name, **fields)
    tenant.full_clean()
    tenant.save()
    record(actor=actor, action="create", object_type="tenant", object_id=slug, after=describe_tenant(tenant))
    return tenant


def ensure_tenant(*, slug: str, name: str, actor: str) -> Tenant:
    """The tenant with this slug, made if there is none."""
    return Tenant.objects.filter(slug=slug).first() or create_tenant(slug=slug, name=name, actor=actor)


@transaction.atomic
def create_key(
    *,
    tenant: Tenant,
    name: str,
    actor: str,
    default_class: str = "",
    allowed_classes: Iterable[str] = (),
    expires_at: datetime | None = None,
    operator: AbstractBaseUser | None = None,
) -> NewKey:
    """A new key and its text, which cannot be read again."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        tenant=tenant,
        name=name,
        prefix=token[:SHOWN_CHARACTERS],
        digest=digest_of(token),
        default_class=default_class,
        allowed_classes=list(allowed_classes),
        expires_at=expires_at,
        operator=operator,
    )
    key.full_clean()
    key.save()
    record(
        actor=actor, action="create", object_type="api_key", object_id=str(key.pk), after=describe_key(key)
    )
    return NewKey(token=token, key=key)


@transaction.atomic
def revoke_key(*, key_id: int, actor: str) -> ApiKey:
    """End a key; gateways, which cache keys, refuse it within 5 s. Repeating it changes nothing."""
    key = ApiKey.objects.select_for_update().filter(pk=key_id).first()
    if key is None:
        raise NotFound(f"There is no API key {key_id}.")
    if key.revoked_at is None:
        before = describe_key(key)
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
        record(
            actor=actor,
            action="revoke",
            object_type="api_key",
            object_id=str(key.pk),
            before=before,
            after=describe_key(key),
        )
    return key


@transaction.atomic
def create_playground_key(*, operator: AbstractBaseUser, classes: Iterable[str]) -> NewKey:
    """A key of the operator for a working day, good for these classes, in a tenant of its own."""
    actor = operator.get_username()
    tenant = ensure_tenant(slug=PLAYGROUND_TENANT, name="Operators' playground", actor=actor)
    return create_key(
        tenant=tenant,
        name=f"playground of {actor}"[:150],
        actor=actor,
        allowed_classes=classes,
        expires_at=timezone.now() + PLAYGROUND_KEY_TTL,
        operator=operator,
    )


def describe_tenant(tenant: Tenant) -> dict[str, Any]:
    """The tenant as the audit shows it."""
    return {
        "slug": tenant.slug,
        "name": tenant.name,
        "weight": tenant.weight,
        "requests_per_minute": tenant.requests_per_minute,
        "tokens_per_minute": tenant.tokens_per_minute,
        "retention": tenant.retention,
        "retention_days": tenant.retention_days,
    }


def describe_key(key: ApiKey) -> dict[str, Any]:
    """The key as the audit shows it: never its text or its hash."""
    return {
        "tenant": key.tenant.slug,
        "name": key.name,
        "prefix": key.prefix,
        "default_class": key.default_class,
        "allowed_classes": list(key.allowed_classes),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }
