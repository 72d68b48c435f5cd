"""Pages by keyset: `{results, next}`; `next` is the cursor of the following page, or null at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from django.db.models import Model, QuerySet
from rest_framework.request import Request

from controlplane.common.errors import Invalid, Mistake

PAGE_SIZE: Final = 25
LARGEST_CURSOR: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of one page, and where the next begins."""

    results: list[Any]
    next: str | None


def newest_first(rows: QuerySet[Any], number_field: str, request: Request, size: int = PAGE_SIZE) -> Page:
    """The page below `?cursor=`, by a unique number that grows. Rows added meanwhile shift nothing."""
    cursor = request.query_params.get("cursor")
    if cursor is not None:
        rows = rows.filter(**{f"{number_field}__lt": _number(cursor)})
    found: list[Model] = list(rows.order_by(f"-{number_field}")[: size + 1])
    more = len(found) > size
    results = found[:size]
    return Page(results=results, next=str(getattr(results[-1], number_field)) if more else None)


def _number(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 10 or int(cursor) > LARGEST_CURSOR:
        message = "is not a cursor; use the value of `next` of the page before"
        raise Invalid("The page cannot be found.", [Mistake(path="cursor", message=message)])
    return int(cursor)
