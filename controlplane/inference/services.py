"""Writing request records: accepted before they are queued, ended once, purged in time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.conf import settings
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone
from msgspec import Struct

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
    """Commit the rows of many requests at once. Repeating it (an answer was lost) changes nothing.

    One statement with one parameter, a transaction by itself: as a bulk insert of the ORM each row takes 0.2 ms of
    Python beside the gateway's event loop, and the batch three round trips.
    """
    known = pool or settings.TIDEGATE.pool
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(_ACCEPT, [msgspec.json.encode([_accepted(one, known) for one in rows]).decode()])


class _Accepted(Struct, frozen=True):
    """A row as it is inserted. The instant is seconds since the epoch."""

    id: str
    pool: str
    tenant_id: int
    api_key_id: int
    class_id: str
    endpoint: str
    model: str
    gateway: str
    stream: bool
    arrived_at: float
    num_prompt_tokens: int
    max_tokens: int
    parameters: Any
    prompt: Any
    header: bytes
    payload: bytes | None


def _accepted(one: AcceptedRequest, pool: str) -> _Accepted:
    keep = one.retention != "none"
    return _Accepted(
        id=one.header.request_id,
        pool=pool,
        tenant_id=one.tenant_id,
        api_key_id=one.key_id,
        class_id=one.header.class_id,
        endpoint=one.endpoint,
        model=one.model,
        gateway=one.header.gateway,
        stream=one.stream,
        arrived_at=one.header.arrived_at,
        num_prompt_tokens=one.header.num_prompt_tokens,
        max_tokens=one.header.max_tokens,
        parameters=storable(dict(one.parameters)),
        prompt=storable(one.prompt) if keep else None,
        header=encode(one.header),
        payload=encode(one.payload) if keep else None,
    )


_ACCEPT = f"""
INSERT INTO {InferenceRequest._meta.db_table} (
    id, pool, tenant_id, api_key_id, class_id, endpoint, model, gateway, stream, arrived_at, num_prompt_tokens,
    max_tokens, parameters, prompt, header, payload, state, accepted_at, num_output_tokens, num_cached_tokens,
    finish_reason, error, worker, num_attempts, num_preemptions
)
SELECT
    id, pool, tenant_id, api_key_id, class_id, endpoint, model, gateway, stream, to_timestamp(arrived_at),
    num_prompt_tokens, max_tokens, parameters, prompt, decode(header, 'base64'), decode(payload, 'base64'),
    '{RequestState.ACCEPTED.value}', clock_timestamp(), 0, 0, '', '', '', 0, 0
FROM json_to_recordset(%s) AS accepted(
    id uuid, pool text, tenant_id bigint, api_key_id bigint, class_id text, endpoint text, model text, gateway text,
    stream bool, arrived_at float8, num_prompt_tokens int, max_tokens int, parameters jsonb, prompt jsonb, header text,
    payload text
)
ON CONFLICT DO NOTHING
"""


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
    rows = [_Row(*row) for row in _locked(by_id).values_list(*_Row._fields)]
    if unknown := by_id.keys() - {row.pk for row in rows}:
        logger.warning("completion of requests that have no row: %s", ", ".join(sorted(map(str, unknown))))
    rules = retention_rules({row.tenant_id for row in rows})
    open_rows = [row for row in rows if row.state == RequestState.ACCEPTED or row.finish_reason == LOST]
    endings = [_ending(row, by_id[row.pk], rules.get(row.tenant_id, FORGET_NOTHING)) for row in open_rows]
    _write(endings)
    return len(endings)


class _Row(NamedTuple):
    """What of a row decides how its end is written; its texts are not read."""

    pk: UUID
    tenant_id: int
    endpoint: str
    state: str
    finish_reason: str


class _Ending(Struct, frozen=True):
    """The end of a request as its row gets it. Instants are seconds since the epoch; texts kept for `kept_s`."""

    id: UUID
    state: str
    finish_reason: str
    error: str
    output: str | None
    first_token_at: float | None
    finished_at: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    queue_s: float | None
    formation_s: float | None
    prefill_s: float | None
    decode_s: float | None
    parked_s: float
    post_s: float | None
    worker: str
    num_attempts: int
    num_preemptions: int
    keeps_prompt: bool
    kept_s: float | None


def _locked(ids: Iterable[UUID]) -> QuerySet[InferenceRequest]:
    return InferenceRequest.objects.select_for_update().filter(pk__in=list(ids)).order_by("pk")


def _ending(row: _Row, record: CompletionRecord, rule: RetentionRule) -> _Ending:
    """What is left of the texts, and until when, is the tenant's retention. A request of the native API keeps its
    output for a while in any case: it is fetched later."""
    times = record.timings or Timings()
    keeps_all, keeps_output = rule.retention == "days", row.endpoint in NATIVE_ENDPOINTS
    days_s, result_s = rule.days * 86_400.0, settings.TIDEGATE.result_ttl_s
    return _Ending(
        id=row.pk,
        state=RequestState(record.state).value,
        finish_reason=record.finish_reason,
        error=storable(record.error),
        output=storable(record.text) if keeps_all or keeps_output else None,
        first_token_at=record.first_token_at,
        finished_at=record.finished_at,
        num_prompt_tokens=record.num_prompt_tokens,
        num_output_tokens=record.num_output_tokens,
        num_cached_tokens=times.num_cached_tokens,
        ttft_s=record.ttft_s,
        tpot_s=record.tpot_s,
        e2e_s=record.e2e_s,
        queue_s=times.queue_s,
        formation_s=times.formation_s,
        prefill_s=times.prefill_s,
        decode_s=times.decode_s,
        parked_s=times.parked_s,
        post_s=record.post_s,
        worker=record.worker,
        num_attempts=record.attempt + 1,
        num_preemptions=times.num_preemptions,
        keeps_prompt=keeps_all,
        kept_s=days_s if keeps_all else result_s if keeps_output else None,
    )


_AS_THEY_ARE = [
    "state", "finish_reason", "error", "output", "num_prompt_tokens", "num_output_tokens", "num_cached_tokens",
    "ttft_s", "tpot_s", "e2e_s", "queue_s", "formation_s", "prefill_s", "decode_s", "parked_s", "post_s", "worker",
    "num_attempts", "num_preemptions",
]  # fmt: skip
_WRITE = f"""
UPDATE {InferenceRequest._meta.db_table} AS request
SET {", ".join(f"{name} = ended.{name}" for name in _AS_THEY_ARE)},
    first_token_at = to_timestamp(ended.first_token_at),
    finished_at = to_timestamp(ended.finished_at),
    purge_at = to_timestamp(ended.finished_at) + make_interval(secs => ended.kept_s),
    prompt = CASE WHEN ended.keeps_prompt THEN request.prompt END,
    header = NULL,
    payload = NULL
FROM json_to_recordset(%s) AS ended(
    id uuid, state text, finish_reason text, error text, output text, first_token_at float8, finished_at float8,
    num_prompt_tokens int, num_output_tokens int, num_cached_tokens int, ttft_s float8, tpot_s float8, e2e_s float8,
    queue_s float8, formation_s float8, prefill_s float8, decode_s float8, parked_s float8, post_s float8, worker text,
    num_attempts int, num_preemptions int, keeps_prompt bool, kept_s float8
)
WHERE request.id = ended.id
"""


def _write(endings: list[_Ending]) -> None:
    """One statement with one parameter: a bulk update of the ORM takes 4 ms a row, nearly all of it to write SQL."""
    if endings:
        with connection.cursor() as cursor:
            cursor.execute(_WRITE, [msgspec.json.encode(endings).decode()])


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
