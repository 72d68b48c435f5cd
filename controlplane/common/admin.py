"""Admin pages: named after the product, and for rows that nobody may change by hand readable to the last field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from django.contrib import admin
from django.db.models import Field, JSONField, Model
from django.http import HttpRequest
from django.utils.html import format_html

admin.site.site_header = "Tidegate records"
admin.site.site_title = "Tidegate"
admin.site.index_title = "Tenants, keys and accounts; requests, policies and the audit"
admin.site.site_url = "/live"

ACRONYMS: Final = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "id": "id", "api": "API"}
Column = Callable[[Any], Any]


class ReadOnlyAdmin(admin.ModelAdmin):
    """Look, don't touch. All fields are shown, JSON as it is read best; seconds and counts are named as such."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str | Column]:
        return list(self._shown())

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[str | Column]:
        return list(self._shown())

    def _shown(self) -> Iterable[str | Column]:
        hidden = self.exclude or ()
        for field in self.model._meta.fields:
            if field.name not in hidden and (field.name == "id" or not field.auto_created):
                yield _readable(field)


def column(name: str) -> Column:
    """A column of a list with a title for people: `ttft_s` is "TTFT, s"."""

    @admin.display(description=title_of(name), ordering=name)
    def value(row: Any) -> Any:
        found = getattr(row, name)
        if found is None:
            return "–"
        return f"{found:.3f}" if isinstance(found, float) else found

    return value


def title_of(name: str) -> str:
    """`num_prompt_tokens` is "Prompt tokens", `e2e_s` is "E2E, s"."""
    unit = ", s" if name.endswith("_s") else ""
    words = name.removeprefix("num_").removesuffix("_s").split("_")
    spelled = " ".join(ACRONYMS.get(one, one) for one in words)
    return f"{spelled[:1].upper()}{spelled[1:]}{unit}"


def _readable(field: Field[Any, Any]) -> str | Column:
    if isinstance(field, JSONField):
        return _json(field.name)
    is_measure = field.name.startswith("num_") or field.name.endswith("_s")
    return column(field.name) if is_measure else field.name


def _json(name: str) -> Column:
    @admin.display(description=title_of(name))
    def value(row: Any) -> Any:
        found = getattr(row, name)
        if found is None:
            return "–"
        text = json.dumps(found, indent=2, ensure_ascii=False)
        return format_html('<pre style="margin:0;white-space:pre-wrap">{}</pre>', text)

    return value
