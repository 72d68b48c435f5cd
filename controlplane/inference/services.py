"""Writing request records: accepted before they are queued, ended once, purged in time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.inference.models import Endpoint, InferenceRequest, RequestState
from controlplane.tenants.selectors import RetentionRule, retention_rules
from scheduler_worker.protocol.messages import CompletionRecord, Header, Payload, Timings, encode

logger = logging.getLogger(__name__)

NATIVE_ENDPOINTS = frozenset({Endpoint.NATIVE_CHAT, Endpoint.NATIVE_COMPLETIONS})
LOST = "lost"  # the finish reason of a request that reconciling gave up
FORGET_NOTHING = RetentionRule(retention="terminal", days=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedRequest:
    """A request that admission let in. `prompt`: messages or text; `parameters`: the rest of the body.

    `endpoint` is one of `models.Endpoint`. `retention` is the key's; with `none` neither prompt nor payload
    is stored, and the request cannot be queued again should Redis lose it.
    """

    header: Header
    payload: Payload
    tenant_id: int
    key_id: int
    endpoint: str
    model: str
    prompt: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    retention: str = "terminal"


def record_accepted(rows: Sequence[AcceptedRequest], pool: str | None = None) -> None:
    """Commit the rows of many requests at once. Repeating it (an answer was lost) changes nothing."""
    records = [_row(one, pool or settings.TIDEGATE.pool) for one in rows]
    InferenceRequest.objects.bulk_create(records, ignore_conflicts=True)


def _row(one: AcceptedRequest, pool: str) -> InferenceRequest:
    keep = one.retention != "none"
    return InferenceRequest(
        id=UUID(one.header.request_id),
        pool=pool,
        tenant_id=one.tenant_id,
        api_key_id=one.key_id,
        class_id=one.header.class_id,
        endpoint=one.endpoint,
        model=one.model,
        gateway=one.header.gateway,
        stream=one.stream,
        arrived_at=instant(one.header.arrived_at),
        num_prompt_tokens=one.header.num_prompt_tokens,
        max_tokens=one.header.max_tokens,
        parameters=storable(dict(one.parameters)),
        prompt=storable(one.prompt) if keep else None,
        header=encode(one.header),
        payload=encode(one.payload) if keep else None,
    )


def storable(value: Any) -> Any:
    """The JSON value without U+0000, which Postgres cannot hold."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, Mapping):
        return {storable(key): storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [storable(one) for one in value]
    return value


@transaction.atomic
def mark_finished(records: Iterable[CompletionRecord]) -> int:
    """Write how requests ended; returns how many rows changed.

    Records may come twice and in any order: the first end of a request counts, but for one that reconciling
    guessed. Rows are locked in the order of their ids, so that two batches never wait for each other. Records
    without a row are logged and dropped.
    """
    by_id = {UUID(one.request_id): one for one in reversed(list(records))}
    rows = list(InferenceRequest.objects.select_for_update().filter(pk__in=by_id).order_by("pk"))
    if unknown := by_id.keys() - {row.pk for row in rows}:
        logger.warning("completion of requests that have no row: %s", ", ".join(sorted(map(str, unknown))))
    rules = retention_rules({row.tenant_id for row in rows})
    ended = [row for row in rows if row.state == RequestState.ACCEPTED or row.finish_reason == LOST]
    for row in ended:
        _end(row, by_id[row.pk], rules.get(row.tenant_id, FORGET_NOTHING))
    InferenceRequest.objects.bulk_update(ended, _ENDING_FIELDS, batch_size=500)
    return len(ended)


_ENDING_FIELDS = [
    "state", "finish_reason", "error", "output", "first_token_at", "finished_at", "num_prompt_tokens",
    "num_output_tokens", "num_cached_tokens", "ttft_s", "tpot_s", "e2e_s", "queue_s", "formation_s",
    "prefill_s", "decode_s", "parked_s", "post_s", "worker", "num_attempts", "num_preemptions", "purge_at",
    "prompt", "payload", "header",
]  # fmt: skip


def _end(row: InferenceRequest, record: CompletionRecord, rule: RetentionRule) -> None:
    row.state = RequestState(record.state)
    row.finish_reason = record.finish_reason
    row.error = storable(record.error)
    row.finished_at = instant(record.finished_at)
    row.first_token_at = instant(record.first_token_at) if record.first_token_at is not None else None
    row.num_prompt_tokens = record.num_prompt_tokens
    row.num_output_tokens = record.num_output_tokens
    row.ttft_s, row.tpot_s, row.e2e_s, row.post_s = record.ttft_s, record.tpot_s, record.e2e_s, record.post_s
    row.worker = record.worker
    row.num_attempts = record.attempt + 1
    _take_timings(row, record.timings or Timings())
    _retain(row, storable(record.text), rule)


def _take_timings(row: InferenceRequest, timings: Timings) -> None:
    row.queue_s, row.formation_s = timings.queue_s, timings.formation_s
    row.prefill_s, row.decode_s = timings.prefill_s, timings.decode_s
    row.parked_s, row.num_preemptions = timings.parked_s, timings.num_preemptions
    row.num_cached_tokens = timings.num_cached_tokens


def _retain(row: InferenceRequest, output: str, rule: RetentionRule) -> None:
    """What is left of the texts once a request has ended, and until when.

    A request of the native API keeps its output for a while in any case: it is fetched later.
    """
    row.header = row.payload = None
    native = row.endpoint in NATIVE_ENDPOINTS
    if rule.retention == "days":
        row.output = output
        row.purge_at = row.finished_at + timedelta(days=rule.days)
        return
    row.prompt = None
    row.output = output if native else None
    row.purge_at = row.finished_at + timedelta(seconds=settings.TIDEGATE.result_ttl_s) if native else None


def purge_payloads(now: datetime | None = None, batch_size: int = 1000) -> int:
    """Delete prompts and outputs whose time has come; returns how many rows lost theirs."""
    due = InferenceRequest.objects.filter(purge_at__lte=now or timezone.now()).order_by("purge_at")
    total = 0
    while ids := list(due.values_list("pk", flat=True)[:batch_size]):
        total += InferenceRequest.objects.filter(pk__in=ids).update(prompt=None, output=None, purge_at=None)
    return total


def fail_lost(rows: Sequence[InferenceRequest], why: str) -> int:
    """Give up accepted requests that nobody can finish any more; returns how many."""
    now = timezone.now().timestamp()
    return mark_finished(_lost_record(row, why, now) for row in rows)


def _lost_record(row: InferenceRequest, why: str, now: float) -> CompletionRecord:
    return CompletionRecord(
        request_id=str(row.pk),
        state=RequestState.FAILED,
        finish_reason=LOST,
        finished_at=now,
        num_prompt_tokens=row.num_prompt_tokens,
        num_output_tokens=0,
        error=why,
    )


def instant(seconds: float) -> datetime:
    """Seconds since the epoch as an aware time."""
    return datetime.fromtimestamp(seconds, tz=UTC)
