from __future__ import annotations

from django.contrib import admin

from controlplane.common.admin import ReadOnlyAdmin, column
from controlplane.policies.models import PolicyVersion, Trial


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnlyAdmin):
    list_display = ["pool", "version", "state", "author", "published_at", "comment"]
    list_filter = ["pool", "state"]
    list_select_related = ["pool"]


@admin.register(Trial)
class TrialAdmin(ReadOnlyAdmin):
    list_display = ["id", "author", "created_at", "base_version", column("window_s"), "state", "problem"]
    list_filter = ["pool", "state"]
