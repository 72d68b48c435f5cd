"""Reading the record of changes."""

from __future__ import annotations

from django.db.models import QuerySet

from controlplane.audit.models import AuditEntry


def entries() -> QuerySet[AuditEntry]:
    """All entries, newest first."""
    return AuditEntry.objects.order_by("-id")


def entries_of(object_type: str, object_id: str) -> QuerySet[AuditEntry]:
    """The entries of one object, newest first."""
    return entries().filter(object_type=object_type, object_id=object_id)
