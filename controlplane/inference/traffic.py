"""Recorded traffic: accepted requests from their rows, refused ones from the gateways' arrival records in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from controlplane.common.connections import redis_client
from controlplane.inference.models import InferenceRequest
from controlplane.inference.services import instant
from scheduler_worker.protocol import keys

ACCEPTED: Final = "accepted"
TENANT_QUOTA: Final = "tenant_quota"
READ_AT_ONCE: Final = 5_000
Arrival = tuple[float, str, str, int, int, str]
_decode = msgspec.msgpack.Decoder(Arrival).decode


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request that reached a gateway. `num_output_tokens` is None where the answer never ended, or never began;
    latencies are the gateway's."""

    arrived_at: float
    class_id: str
    tenant: str
    num_prompt_tokens: int
    max_tokens: int
    num_output_tokens: int | None = None
    num_cached_tokens: int = 0
    is_refused: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None


def recorded(pool: str, *, since: float | None, until: float, limit: int) -> list[Recorded]:
    """The newest `limit` requests that arrived from `since` on, oldest first; instants in seconds since the epoch.

    What a tenant's quota refused is left out: no policy would have let it in.
    """
    rows = [*_accepted(pool, since, until, limit), *_refused(pool, since, until, limit)]
    return sorted(rows, key=lambda one: one.arrived_at)[-limit:]


def count(pool: str, *, since: list[float], until: float, limit: int) -> list[int]:
    """How many there are since each of these instants, up to `limit`."""
    refused = [one.arrived_at for one in _refused(pool, min(since), until, limit)]
    return [_count_accepted(pool, one, until, limit) + sum(at >= one for at in refused) for one in since]


def _count_accepted(pool: str, since: float, until: float, limit: int) -> int:
    rows = InferenceRequest.objects.filter(
        pool=pool, arrived_at__gte=instant(since), arrived_at__lte=instant(until)
    )
    return rows.order_by()[:limit].count()


def _accepted(pool: str, since: float | None, until: float, limit: int) -> list[Recorded]:
    rows = InferenceRequest.objects.filter(pool=pool, arrived_at__lte=instant(until))
    if since is not None:
        rows = rows.filter(arrived_at__gte=instant(since))
    found = rows.order_by("-arrived_at", "-id").values_list(
        "arrived_at", "class_id", "tenant__slug", "num_prompt_tokens", "max_tokens", "num_output_tokens",
        "num_cached_tokens", "ttft_s", "tpot_s",
    )  # fmt: skip
    return [_row(*one) for one in found[:limit]]


def _row(arrived_at: datetime, class_id: str, tenant: str, *figures: Any) -> Recorded:
    num_prompt_tokens, max_tokens, num_output_tokens, num_cached_tokens, ttft_s, tpot_s = figures
    return Recorded(
        arrived_at=arrived_at.timestamp(),
        class_id=class_id,
        tenant=tenant,
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
        num_output_tokens=num_output_tokens or None,
        num_cached_tokens=num_cached_tokens,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
    )


def _refused(pool: str, since: float | None, until: float, limit: int) -> list[Recorded]:
    """Newest first. The stream's ids are Redis's milliseconds, written within a second of the arrival."""
    key, first = keys.ARRIVALS.of(pool), "-" if since is None else str(max(0, int(since * 1000)))
    last = str(int((until + 1.0) * 1000))
    found: list[Recorded] = []
    while len(found) < limit:
        entries = redis_client().xrevrange(key, last, first, count=READ_AT_ONCE)
        arrivals = [one for one in map(_arrival, entries) if one is not None]
        found += [one for one in arrivals if (since or 0.0) <= one.arrived_at <= until]
        if len(entries) < READ_AT_ONCE:
            break
        last = f"({entries[-1][0].decode()}"
    return found[:limit]


def _arrival(entry: Any) -> Recorded | None:
    """The refused arrival of an entry; None for what was accepted, out of quota, or cannot be read."""
    try:
        at, class_id, tenant, num_prompt_tokens, max_tokens, outcome = _decode(entry[1][b"a"])
    except (KeyError, msgspec.DecodeError):
        return None
    if outcome in (ACCEPTED, TENANT_QUOTA):
        return None
    return Recorded(at, class_id, tenant, num_prompt_tokens, max_tokens, is_refused=True)
