"""Accepted requests that nobody works on: Redis lost its memory, or a gateway died before it enqueued.

They are queued again where that can succeed, else ended with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from controlplane.common.connections import redis_client, run_script
from controlplane.inference import selectors, services
from controlplane.inference.models import InferenceRequest
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Header, Payload, ProtocolError, decode

logger = logging.getLogger(__name__)

CHUNK_ROWS: Final = 1000
LOST_STREAM: Final = (
    "The request was lost: the queue lost its memory and the gateway that held the client's connection is "
    "gone. Send it again."
)
LOST_TEXT: Final = (
    "The request was lost: the queue lost its memory, and by the tenant's retention there is no prompt to "
    "queue it from again. Send it again."
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round did."""

    num_requeued: int = 0
    num_failed: int = 0

    @property
    def num_changed(self) -> int:
        return self.num_requeued + self.num_failed


def reconcile_lost(pool: str, lost_after_s: float) -> Outcome:
    """Deal with accepted requests older than `lost_after_s` that Redis does not know and no gateway holds."""
    rows = selectors.in_progress(pool, older_than_s=lost_after_s).defer("payload", "prompt", "output")
    ids = [row.pk for chunk in _chunks(rows.iterator(CHUNK_ROWS)) for row in _lost(pool, chunk)]
    return _deal_with(list(InferenceRequest.objects.filter(pk__in=ids)))


def _chunks(rows: Iterator[InferenceRequest]) -> Iterator[list[InferenceRequest]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _deal_with(lost: Sequence[InferenceRequest]) -> Outcome:
    native = [row for row in lost if row.endpoint in services.NATIVE_ENDPOINTS]
    requeued = [row for row in native if _requeue(row)]
    again = {row.pk for row in requeued}
    num_failed = services.fail_lost([row for row in native if row.pk not in again], LOST_TEXT)
    num_failed += services.fail_lost([row for row in lost if row not in native], LOST_STREAM)
    return Outcome(num_requeued=len(requeued), num_failed=num_failed)


def _lost(pool: str, rows: Sequence[InferenceRequest]) -> list[InferenceRequest]:
    """Those without a payload in Redis and without a living gateway. One round trip."""
    if not rows:
        return []
    with redis_client().pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.GATEWAY_LEASES.of(pool), 0, -1, withscores=True)
        for row in rows:
            pipe.exists(keys.PAYLOAD.of(pool, str(row.pk)))
        (seconds, microseconds), leases, *known = pipe.execute()
    now = seconds + microseconds / 1e6
    living = {gateway.decode() for gateway, ends_at in leases if ends_at > now}
    return [row for row, there in zip(rows, known, strict=True) if not there and row.gateway not in living]


def _requeue(row: InferenceRequest) -> bool:
    """Enqueue what was accepted once more, for a gateway to adopt; whether that was possible."""
    if row.payload is None or row.header is None:
        return False
    try:
        header, payload = decode(Header, bytes(row.header)), decode(Payload, bytes(row.payload))
    except ProtocolError as error:
        logger.error("request %s cannot be queued again: %s", row.pk, error)
        return False
    run_script(scripts.enqueue(row.pool, header, payload))
    # A lease that is over makes a live gateway adopt the request; without an entry none would.
    redis_client().zadd(keys.GATEWAY_LEASES.of(row.pool), {header.gateway: 0}, nx=True)
    logger.warning("request %s was lost by Redis and is queued again", row.pk)
    return True
