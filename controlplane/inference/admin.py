from __future__ import annotations

from django.contrib import admin

from controlplane.common.admin import ReadOnlyAdmin
from controlplane.inference.models import InferenceRequest


@admin.register(InferenceRequest)
class InferenceRequestAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "tenant",
        "class_id",
        "state",
        "finish_reason",
        "arrived_at",
        "ttft_s",
        "e2e_s",
        "worker",
    ]
    list_filter = ["state", "class_id", "endpoint"]
    list_select_related = ["tenant"]
    exclude = ["header", "payload"]
    show_full_result_count = False
