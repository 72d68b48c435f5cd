"""Background work on request records. Every task may run twice."""

from __future__ import annotations

import base64
import logging

from celery import shared_task
from django.conf import settings
from django.db import DataError, InterfaceError, OperationalError

from controlplane.common.connections import run_script
from controlplane.inference import reconciling, services
from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import CompletionRecord, ProtocolError, decode

logger = logging.getLogger(__name__)


@shared_task(
    name="inference.record_completions",
    autoretry_for=(OperationalError, InterfaceError),
    retry_backoff=1,
    retry_backoff_max=60,
    max_retries=None,
)
def record_completions(batch: list[str]) -> int:
    """Write the ends of requests: base64 of msgpack `CompletionRecord`s. Returns how many rows changed."""
    records = [one for one in map(_readable, batch) if one is not None]
    try:
        return services.mark_finished(records)
    except (DataError, ValueError):
        return sum(_mark_alone(one) for one in records)


def _mark_alone(record: CompletionRecord) -> int:
    """One record of a refused batch alone: only one at fault is dropped, and its row reconciled later."""
    try:
        return services.mark_finished([record])
    except (DataError, ValueError) as error:
        logger.error("the completion of %s was dropped: %s", record.request_id, error)
        return 0


def _readable(text: str) -> CompletionRecord | None:
    """A record that cannot be read must not hold up the others: it is logged, its row reconciled later."""
    try:
        return decode(CompletionRecord, base64.b64decode(text))
    except (ProtocolError, ValueError) as error:
        logger.error("a completion record was dropped: %s", error)
        return None


@shared_task(name="inference.requeue_expired")
def requeue_expired() -> int:
    """Queue the requests of workers whose lease ran out again; returns how many."""
    return len(run_script(scripts.requeue_expired(settings.TIDEGATE.pool)))


@shared_task(name="inference.reconcile_lost")
def reconcile_lost() -> int:
    """Rows in progress that neither Redis nor a gateway knows: queue them again or give them up."""
    return reconciling.reconcile_lost(settings.TIDEGATE.pool, settings.TIDEGATE.lost_after_s).num_changed


@shared_task(name="inference.purge_payloads")
def purge_payloads() -> int:
    """Delete prompts and outputs whose retention ended."""
    return services.purge_payloads()
