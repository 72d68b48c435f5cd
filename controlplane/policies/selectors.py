"""Reading policies."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from controlplane.common.errors import NotFound
from controlplane.policies.models import PolicyVersion, Trial, VersionState
from scheduler_worker.core.policy import Policy, policy_schema
from scheduler_worker.protocol.messages import PolicyAnnouncement

__all__ = [
    "active", "active_policy", "announcement_of", "find_active", "schema", "trial_of", "trials", "version_of",
    "versions",
]  # fmt: skip


def find_active(pool: str) -> PolicyVersion | None:
    """The live version of a pool, or None before the first was published."""
    return PolicyVersion.objects.filter(pool_id=pool, state=VersionState.LIVE).first()


def active(pool: str) -> PolicyVersion:
    """The live version of a pool; raises `NotFound` before the first was published."""
    version = find_active(pool)
    if version is None:
        raise NotFound(
            f"No policy was published for the pool {pool} yet. Publish one with POST /api/v1/policies."
        )
    return version


def active_policy(pool: str) -> Policy:
    """The live document of a pool as the core's type; raises `NotFound`."""
    return Policy.model_validate(active(pool).document)


def versions(pool: str) -> QuerySet[PolicyVersion]:
    """All versions of a pool, newest first."""
    return PolicyVersion.objects.filter(pool_id=pool).order_by("-version")


def version_of(pool: str, version: int) -> PolicyVersion:
    """One version of a pool; raises `NotFound`."""
    found = versions(pool).filter(version=version).first()
    if found is None:
        raise NotFound(f"The pool {pool} has no policy v{version}.")
    return found


def announcement_of(version: PolicyVersion) -> PolicyAnnouncement:
    """The version as workers and gateways read it from Redis."""
    policy = Policy.model_validate(version.document)
    return PolicyAnnouncement(
        version=version.version,
        document=policy.model_dump_json(),
        published_at=version.published_at.timestamp(),
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy document."""
    return policy_schema()


def trials(pool: str) -> QuerySet[Trial]:
    """All trials of a pool, newest first."""
    return Trial.objects.filter(pool=pool).order_by("-id")


def trial_of(pool: str, trial_id: int) -> Trial:
    """One trial of a pool; raises `NotFound`."""
    found = trials(pool).filter(pk=trial_id).first()
    if found is None:
        raise NotFound(f"The pool {pool} has no trial {trial_id}.")
    return found
