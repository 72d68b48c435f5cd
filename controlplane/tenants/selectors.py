"""Reading tenants and their keys."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from django.db.models import Q, QuerySet
from django.utils import timezone

from controlplane.tenants.models import ApiKey, Tenant


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What the gateway needs to know about a key. Empty `default_class`: the policy's default class."""

    key_id: int
    tenant_id: int
    tenant_slug: str
    tenant_weight: float
    default_class: str
    allowed_classes: frozenset[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    retention: str
    retention_days: int


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """How long a tenant's prompts and outputs are kept: `none`, `terminal` or `days`."""

    retention: str
    days: int


def digest_of(token: str) -> str:
    """How a key is stored. Keys are 256 random bits, so that a fast hash without salt is safe."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_key(token: str) -> KeyInfo | None:
    """The key with this text, unless it is unknown, revoked or expired. One query."""
    key = (
        ApiKey.objects.select_related("tenant")
        .filter(Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now()))
        .filter(digest=digest_of(token), revoked_at__isnull=True)
        .first()
    )
    return None if key is None else _key_info(key)


def _key_info(key: ApiKey) -> KeyInfo:
    named = frozenset(filter(None, [key.default_class, *key.allowed_classes]))
    return KeyInfo(
        key_id=key.pk,
        tenant_id=key.tenant_id,
        tenant_slug=key.tenant.slug,
        tenant_weight=key.tenant.weight,
        default_class=key.default_class,
        allowed_classes=named,
        requests_per_minute=key.tenant.requests_per_minute,
        tokens_per_minute=key.tenant.tokens_per_minute,
        retention=key.tenant.retention,
        retention_days=key.tenant.retention_days,
    )


def tenants() -> QuerySet[Tenant]:
    """All tenants, by slug."""
    return Tenant.objects.order_by("slug")


def retention_rules(tenant_ids: set[int]) -> dict[int, RetentionRule]:
    """The rules of several tenants by id. One query."""
    rows = Tenant.objects.filter(pk__in=tenant_ids).values_list("pk", "retention", "retention_days")
    return {pk: RetentionRule(retention, days) for pk, retention, days in rows}


def weights() -> dict[str, float]:
    """Every tenant's weight by slug. One query."""
    return dict(Tenant.objects.values_list("slug", "weight"))
