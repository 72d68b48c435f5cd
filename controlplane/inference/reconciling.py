"""Accepted requests that nobody works on: Redis lost its memory, or a gateway died before it enqueued.

They are queued again where that can succeed, else ended with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Final

from django.utils import timezone

from controlplane.common.connections import redis_client, run_script
from controlplane.inference import selectors, services
from controlplane.inference.models import InferenceRequest
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Header, Payload, ProtocolError, decode

logger = logging.getLogger(__name__)

CHUNK_ROWS: Final = 1000
PATIENCE: Final = (
    10  # times `lost_after_s`, with a gateway that lives: its completion record may be on its way
)
LOST_STREAM: Final = (
    "The request was lost: the queue lost its memory and the gateway that held the client's connection is "
    "gone. Send it again."
)
LOST_TEXT: Final = (
    "The request was lost: the queue lost its memory, and by the tenant's retention there is no prompt to "
    "queue it from again. Send it again."
)
LOST_END: Final = "How the request ended is not known: its completion record was lost."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one round did."""

    num_requeued: int = 0
    num_failed: int = 0

    @property
    def num_changed(self) -> int:
        return self.num_requeued + self.num_failed


def reconcile_lost(pool: str, lost_after_s: float) -> Outcome:
    """Deal with accepted requests that Redis does not know.

    Those older than `lost_after_s` whose gateway is gone are queued again or given up; those `PATIENCE` times
    older whose gateway lives are given up.
    """
    rows = selectors.in_progress(pool, older_than_s=lost_after_s).defer("payload", "prompt", "output")
    orphans, forgotten = [], []
    patience = timezone.now() - timedelta(seconds=lost_after_s * PATIENCE)
    for chunk in _chunks(rows.iterator(CHUNK_ROWS)):
        living, unknown = _unknown(pool, chunk)
        orphans += [row for row in unknown if row.gateway not in living]
        forgotten += [row for row in unknown if row.gateway in living and row.accepted_at < patience]
    num_requeued, num_failed = _deal_with(orphans)
    num_failed += services.fail_lost(forgotten, LOST_END)
    return Outcome(num_requeued, num_failed)


def _chunks(rows: Iterator[InferenceRequest]) -> Iterator[list[InferenceRequest]]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _unknown(pool: str, rows: Sequence[InferenceRequest]) -> tuple[set[str], list[InferenceRequest]]:
    """The gateways that live, and the rows whose payload Redis does not hold. One round trip."""
    with redis_client().pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.GATEWAY_LEASES.of(pool), 0, -1, withscores=True)
        for row in rows:
            pipe.exists(keys.PAYLOAD.of(pool, str(row.pk)))
        (seconds, microseconds), leases, *known = pipe.execute()
    now = seconds + microseconds / 1e6
    living = {gateway.decode() for gateway, ends_at in leases if ends_at > now}
    return living, [row for row, there in zip(rows, known, strict=True) if not there]


def _deal_with(orphans: Sequence[InferenceRequest]) -> tuple[int, int]:
    """How many were queued again, and how many were given up."""
    native = [row for row in orphans if row.endpoint in services.NATIVE_ENDPOINTS]
    hopeless = [row for row in native if not _requeue(row)]
    streams = [row for row in orphans if row.endpoint not in services.NATIVE_ENDPOINTS]
    num_failed = services.fail_lost(hopeless, LOST_TEXT) + services.fail_lost(streams, LOST_STREAM)
    return len(native) - len(hopeless), num_failed


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
