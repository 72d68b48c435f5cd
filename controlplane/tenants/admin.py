"""Tenants and keys by hand. Every write goes through the services' audit; a new key's text is shown once."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from controlplane.audit.services import record
from controlplane.tenants import services
from controlplane.tenants.models import ApiKey, Tenant


@admin.register(Tenant)
class TenantAdmin(admin.ModelAdmin):
    list_display = ["slug", "name", "weight", "requests_per_minute", "tokens_per_minute", "retention"]
    search_fields = ["slug", "name"]
    fields = ["slug", "name", "weight", "requests_per_minute", "tokens_per_minute", "retention", "retention_days"]

    def get_readonly_fields(self, request: HttpRequest, obj: Tenant | None = None) -> list[str]:
        return ["slug"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Tenant | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Tenant, form: ModelForm, change: bool) -> None:
        before = services.describe_tenant(Tenant.objects.get(pk=obj.pk)) if change else None
        super().save_model(request, obj, form, change)
        record(
            actor=request.user.get_username(),
            action="change" if change else "create",
            object_type="tenant",
            object_id=obj.slug,
            before=before,
            after=services.describe_tenant(obj),
        )


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):
    list_display = ["prefix", "name", "tenant", "default_class", "created_at", "expires_at", "revoked_at"]
    list_filter = ["tenant"]
    list_select_related = ["tenant"]
    fields = ["tenant", "name", "default_class", "allowed_classes", "expires_at"]
    actions = ["revoke"]

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        """A new key's are asked for; an old one's are all told, but for what it is."""
        return list(self.fields) if obj is None else [*self.fields, *self.get_readonly_fields(request, obj)]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        return [] if obj is None else ["prefix", "created_at", "revoked_at"]

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return obj is None and super().has_change_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: ModelForm, change: bool) -> None:
        new = services.create_key(actor=request.user.get_username(), **form.cleaned_data)
        obj.pk, obj.prefix = new.key.pk, new.key.prefix
        messages.warning(request, f"The key is {new.token} – copy it now, it cannot be shown again.")

    @admin.action(description="Revoke the selected keys")
    def revoke(self, request: HttpRequest, keys: QuerySet[Any]) -> None:
        for key in keys:
            services.revoke_key(key_id=key.pk, actor=request.user.get_username())
