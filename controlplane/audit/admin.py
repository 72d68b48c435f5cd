from __future__ import annotations

from django.contrib import admin

from controlplane.audit.models import AuditEntry
from controlplane.common.admin import ReadOnlyAdmin


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["at", "actor", "action", "object_type", "object_id"]
    list_filter = ["object_type", "action"]
    search_fields = ["actor", "object_id"]
