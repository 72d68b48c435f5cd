"""Reading request records, and how far a request in progress has come."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.utils import timezone

from controlplane.common.connections import redis_client
from controlplane.common.errors import NotFound
from controlplane.inference.models import InferenceRequest, RequestState
from scheduler_worker.protocol import keys


def request_of(request_id: UUID, *, tenant_id: int | None = None) -> InferenceRequest:
    """One request; with `tenant_id`, only that tenant's. Raises `NotFound` either way."""
    rows = InferenceRequest.objects.select_related("tenant")
    if tenant_id is not None:
        rows = rows.filter(tenant_id=tenant_id)
    found = rows.filter(pk=request_id).first()
    if found is None:
        raise NotFound(f"There is no request {request_id}.")
    return found


def in_progress(pool: str, *, older_than_s: float = 0.0) -> QuerySet[InferenceRequest]:
    """Accepted requests without an end, oldest first."""
    before = timezone.now() - timedelta(seconds=older_than_s)
    rows = InferenceRequest.objects.filter(state=RequestState.ACCEPTED, accepted_at__lte=before, pool=pool)
    return rows.order_by("accepted_at")


def parameters_of(request_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The parameters that requests were sent with, by id, for a gateway that adopts them. One query."""
    rows = InferenceRequest.objects.filter(pk__in=list(request_ids)).values_list("pk", "parameters")
    return {str(pk): parameters for pk, parameters in rows}


def progress_of(request: InferenceRequest) -> str:
    """`queued`, `running` or the state in which the request ended."""
    if request.state != RequestState.ACCEPTED:
        return request.state
    claimed = redis_client().hexists(keys.CLAIMS.of(request.pool), str(request.pk))
    return "running" if claimed else "queued"
