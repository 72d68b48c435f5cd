from __future__ import annotations

from django.contrib import admin

from controlplane.common.admin import ReadOnlyAdmin, column
from controlplane.inference.models import InferenceRequest


@admin.register(InferenceRequest)
class InferenceRequestAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "tenant",
        "class_id",
        "state",
        "arrived_at",
        column("num_output_tokens"),
        column("ttft_s"),
        column("e2e_s"),
        "worker",
    ]
    list_filter = ["state", "class_id", "endpoint"]
    list_select_related = ["tenant"]
    exclude = ["header", "payload"]
    show_full_result_count = False
