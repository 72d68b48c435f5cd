"""Orders to workers. A worker looks for its order once a second and says when it obeys."""

from __future__ import annotations

from django.db import transaction

from controlplane.audit.services import record
from controlplane.common.connections import redis_client
from controlplane.common.errors import NotFound
from controlplane.fleet import selectors
from scheduler_worker.protocol import keys


def drain(*, pool: str, worker: str, actor: str) -> None:
    """Let a worker take no new request; those it runs end there. Raises `NotFound`.

    The order also holds for a process that starts under the same name, until it is lifted or a day has passed.
    """
    if all(one.id != worker for one in selectors.workers(pool)):
        raise NotFound(f"The pool {pool} has no worker {worker}; there is nothing to drain.")
    key = keys.WORKER_CONTROL.of(pool, worker)
    with transaction.atomic():
        if redis_client().get(key) != keys.DRAIN:
            _record("drain", pool, worker, actor)
        redis_client().set(key, keys.DRAIN, ex=keys.DRAIN_TTL_S)


def resume(*, pool: str, worker: str, actor: str) -> None:
    """Lift the order to drain, if there is one: the worker takes requests again."""
    key = keys.WORKER_CONTROL.of(pool, worker)
    with transaction.atomic():
        if redis_client().get(key) == keys.DRAIN:
            _record("resume", pool, worker, actor)
        redis_client().delete(key)


def _record(action: str, pool: str, worker: str, actor: str) -> None:
    draining = action == "drain"
    record(
        actor=actor,
        action=action,
        object_type="worker",
        object_id=f"{pool}/{worker}"[:128],
        before={"draining": not draining},
        after={"draining": draining},
    )
