"""Reading the workers from Redis: who holds a lease, and what each announces about itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from controlplane.common.connections import redis_client
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import ProtocolError, WorkerInfo, decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """`state` is `live`, `draining` or `silent` (the lease ran out); `info` is None until it speaks."""

    id: str
    state: str
    lease_ends_at: float
    info: WorkerInfo | None


def workers(pool: str) -> list[Worker]:
    """The pool's workers by id. Two round trips, however many there are."""
    redis = redis_client()
    with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zrange(keys.WORKER_LEASES.of(pool), 0, -1, withscores=True)
        (seconds, microseconds), leases = pipe.execute()
    ends = sorted((name.decode(), float(ends_at)) for name, ends_at in leases)
    infos = redis.mget([keys.WORKER_INFO.of(pool, name) for name, _ in ends]) if ends else []
    now = seconds + microseconds / 1e6
    return [_worker(name, at, now, data) for (name, at), data in zip(ends, infos, strict=True)]


def _worker(name: str, lease_ends_at: float, now: float, data: bytes | None) -> Worker:
    info = _info(name, data)
    draining = info is not None and info.draining
    state = "silent" if lease_ends_at <= now else "draining" if draining else "live"
    return Worker(id=name, state=state, lease_ends_at=lease_ends_at, info=info)


def _info(name: str, data: bytes | None) -> WorkerInfo | None:
    try:
        return decode(WorkerInfo, data) if data else None
    except ProtocolError as error:
        logger.warning("worker %s: %s", name, error)
        return None
