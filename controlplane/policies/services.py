"""Publishing policies: a new immutable version in Postgres, then the announcement in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import record
from controlplane.common.errors import Changed, Invalid, Mistake
from controlplane.policies import announcing, selectors
from controlplane.policies.models import PolicyVersion, Pool, VersionState
from scheduler_worker.core.policy import InvalidPolicy, Policy, check_policy


def validate(*, pool: str, document: Mapping[str, Any]) -> Policy:
    """The policy of a document that could be published now; raises `Invalid` with every mistake's path."""
    policy = _checked(document)
    _check_retired(selectors.find_active(pool), policy)
    return policy


def publish(
    *, pool: str, document: Mapping[str, Any], comment: str, author: str, based_on: int | None = None
) -> PolicyVersion:
    """Make a document the pool's live policy, as a new version.

    `based_on` is the version that the author saw; `Changed` is raised when another was published since. None
    publishes whatever is live. Raises `Invalid` with every mistake of the document.
    """
    policy = _checked(document)
    with _lock(pool):
        live = selectors.find_active(pool)
        _check_based_on(live, based_on)
        _check_retired(live, policy)
        return _add_version(pool, policy, live, comment=comment, author=author)


def roll_back(*, pool: str, version: int, comment: str, author: str) -> PolicyVersion:
    """Publish the document of an older version again, as a new version. Raises `NotFound`.

    Classes that came later are retired to its default class: their requests may still wait.
    """
    policy = _checked(selectors.version_of(pool, version).document)
    with _lock(pool):
        live = selectors.find_active(pool)
        policy = _retiring(policy, _missing_classes(live, policy))
        return _add_version(pool, policy, live, comment=comment, author=author, rolled_back_to=version)


def _checked(document: Mapping[str, Any]) -> Policy:
    try:
        return check_policy(document)
    except InvalidPolicy as error:
        raise _invalid([Mistake(path=one.path, message=one.message) for one in error.mistakes]) from error


def _invalid(mistakes: Sequence[Mistake]) -> Invalid:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return Invalid(f"The policy has {count}.", mistakes)


@contextmanager
def _lock(pool: str) -> Iterator[None]:
    """A transaction in which this pool's versions are ours alone: the pool's row is the lock."""
    with transaction.atomic():
        Pool.objects.get_or_create(name=pool)
        Pool.objects.select_for_update().get(name=pool)
        yield


def _add_version(
    pool: str,
    policy: Policy,
    live: PolicyVersion | None,
    *,
    comment: str,
    author: str,
    rolled_back_to: int | None = None,
) -> PolicyVersion:
    if live is not None:
        PolicyVersion.objects.filter(pk=live.pk).update(state=VersionState.SUPERSEDED)
    version = PolicyVersion.objects.create(
        pool_id=pool,
        version=live.version + 1 if live else 1,
        document=policy.model_dump(mode="json"),
        comment=comment,
        author=author,
        published_at=timezone.now(),
        rolled_back_to=rolled_back_to,
        state=VersionState.LIVE,
    )
    _record(version, live)
    transaction.on_commit(lambda: announcing.announce_or_leave_to_reconciling(version))
    return version


def _check_based_on(live: PolicyVersion | None, based_on: int | None) -> None:
    if based_on is None or (live is not None and live.version == based_on):
        return
    if live is None:
        raise Changed(f"You worked on v{based_on}, but no policy was published yet.")
    raise Changed(
        f"{live.author} published v{live.version} while you worked on v{based_on}. Nothing was overwritten: "
        f"compare your changes with v{live.version}, then publish on top of it."
    )


def _check_retired(live: PolicyVersion | None, policy: Policy) -> None:
    """Requests of a removed class may wait somewhere: the document must say which class serves them."""
    if missing := _missing_classes(live, policy):
        raise _invalid([Mistake(f"retired.{one}", _retire_hint(one)) for one in missing])


def _retire_hint(class_id: str) -> str:
    return (
        f"{class_id} is a class of the live policy. Name here the class that serves its requests from now on."
    )


def _missing_classes(live: PolicyVersion | None, policy: Policy) -> list[str]:
    """Class ids that the live policy knows and this one forgot."""
    if live is None:
        return []
    before = Policy.model_validate(live.document)
    known = {one.id for one in policy.classes} | set(policy.retired)
    return [one for one in [*(c.id for c in before.classes), *before.retired] if one not in known]


def _retiring(policy: Policy, class_ids: Sequence[str]) -> Policy:
    fallback = policy.default_class or policy.least_urgent().id
    return policy.model_copy(update={"retired": {**policy.retired, **dict.fromkeys(class_ids, fallback)}})


def _record(version: PolicyVersion, live: PolicyVersion | None) -> None:
    record(
        actor=version.author,
        action="publish" if version.rolled_back_to is None else "roll back",
        object_type="policy",
        object_id=f"{version.pool_id}/v{version.version}",
        before={"version": live.version, "document": live.document} if live else None,
        after={"version": version.version, "document": version.document, "comment": version.comment},
    )
