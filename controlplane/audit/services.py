"""Writing the record of changes. Call it in the transaction of the change, so that neither exists alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.audit.models import AuditEntry


def record(
    *,
    actor: str,
    action: str,
    object_type: str,
    object_id: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """Append one entry. `before` and `after` are JSON values without secrets."""
    return AuditEntry.objects.create(
        actor=actor, action=action, object_type=object_type, object_id=object_id, before=before, after=after
    )
