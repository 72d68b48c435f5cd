"""Telling the fleet which policy is live. Postgres is the truth; Redis is made to say the same."""

from __future__ import annotations

import logging

from redis import RedisError

from controlplane.common.connections import redis_client, run_script
from controlplane.policies import selectors
from controlplane.policies.models import PolicyVersion
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import PolicyAnnouncement, ProtocolError, decode

logger = logging.getLogger(__name__)


def announce_or_leave_to_reconciling(version: PolicyVersion) -> None:
    """Announce a version that was just committed. It is published whether or not Redis hears of it now: the
    reconciling task repeats the announcement within seconds."""
    try:
        announce(version)
    except RedisError as error:
        logger.warning("%s is published but not announced yet, Redis did not answer: %s", version, error)


def announce(version: PolicyVersion, *, force: bool = False) -> None:
    """Make Redis say this version, unless it says a newer one; `force` also goes back."""
    run_script(scripts.announce_policy(version.pool_id, selectors.announcement_of(version), force))


def announced(pool: str) -> PolicyAnnouncement | None:
    """What Redis says, or None when it says nothing that this build can read."""
    data = redis_client().get(keys.POLICY.of(pool))
    try:
        return decode(PolicyAnnouncement, data) if data else None
    except ProtocolError as error:
        logger.warning("the announced policy of %s cannot be read and is replaced: %s", pool, error)
        return None


def reconcile(pool: str) -> bool:
    """Announce the live version again when Redis says another (it lost its memory, or Postgres was restored).

    Returns whether they differed. Postgres is read after Redis, and versions are announced after they are
    committed: so a higher version in Redis is one that Postgres lost, never one that was just published.
    """
    said = announced(pool)
    live = selectors.find_active(pool)
    if live is None or said == selectors.announcement_of(live):
        return False
    announce(live, force=said is not None and said.version >= live.version)
    return True
