"""Publishing: immutable versions, in order, announced after they are committed."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from controlplane.audit.selectors import entries_of
from controlplane.common.connections import redis_client, run_script
from controlplane.common.errors import Changed, Invalid, NotFound
from controlplane.policies import announcing, selectors, services
from controlplane.policies.models import PolicyVersion
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import PolicyAnnouncement

from .conftest import POOL, Document


def publish(document: Document, **fields: Any) -> PolicyVersion:
    return services.publish(**{"pool": POOL, "document": document, "comment": "", "author": "ada", **fields})


def execute(sql: str, *parameters: object) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def heavier(document: Document) -> Document:
    changed = copy.deepcopy(document)
    changed["classes"][0]["weight"] += 10
    return changed


def mistakes_of(error: Invalid) -> dict[str, str]:
    return {one.path: one.message for one in error.mistakes}


def test_the_first_document_becomes_v1(published: Document) -> None:
    assert selectors.active(POOL).version == 1


def test_before_the_first_there_is_none(db: None) -> None:
    with pytest.raises(NotFound, match="Publish one"):
        selectors.active(POOL)


def test_versions_count_up_within_a_pool(published: Document) -> None:
    publish(published, pool="other")
    assert publish(heavier(published)).version == 2


def test_only_the_newest_version_is_live(published: Document) -> None:
    publish(heavier(published))
    assert [(one.version, one.state) for one in selectors.versions(POOL)] == [(2, "live"), (1, "superseded")]


def test_every_mistake_is_named_with_its_path(published: Document) -> None:
    published["classes"][0]["weight"] = -1
    published["classes"][1]["slo"]["ttft_s"] = "soon"
    published["batch_limit"]["speed"] = 3
    with pytest.raises(Invalid) as error:
        publish(published)
    assert set(mistakes_of(error.value)) == {"classes.0.weight", "classes.1.slo.ttft_s", "batch_limit.speed"}


def test_nothing_is_published_of_a_document_with_mistakes(published: Document) -> None:
    published["classes"][1]["max_wait_s"] = 0.01
    with pytest.raises(Invalid):
        publish(published)
    assert selectors.active(POOL).version == 1


def test_a_removed_class_must_be_retired(published: Document) -> None:
    del published["classes"][2]
    with pytest.raises(Invalid) as error:
        publish(published)
    assert "serves its requests" in mistakes_of(error.value)["retired.low"]


def test_a_retired_class_must_stay_retired(published: Document) -> None:
    del published["classes"][2]
    publish({**published, "retired": {"low": "medium"}})
    with pytest.raises(Invalid) as error:
        publish(published)
    assert list(mistakes_of(error.value)) == ["retired.low"]


def test_who_worked_on_an_older_version_is_told_who_was_faster(published: Document) -> None:
    publish(heavier(published), author="m.okafor", based_on=1)
    with pytest.raises(Changed, match="okafor published v2 while you worked on v1"):
        publish(published, based_on=1)


def test_rolling_back_publishes_the_old_document_anew(published: Document) -> None:
    publish(heavier(published))
    again = services.roll_back(pool=POOL, version=1, comment="too heavy", author="ada")
    assert (again.version, again.document, again.rolled_back_to) == (3, published, 1)


def test_rolling_back_retires_the_classes_that_came_later(published: Document) -> None:
    bulk = {**copy.deepcopy(published["classes"][2]), "id": "bulk", "rank": 3}
    publish({**published, "classes": [*published["classes"], bulk]})
    again = services.roll_back(pool=POOL, version=1, comment="", author="ada")
    assert again.document["retired"] == {"bulk": "low"}


def test_rolling_back_to_nothing_is_an_error(published: Document) -> None:
    with pytest.raises(NotFound, match="no policy v9"):
        services.roll_back(pool=POOL, version=9, comment="", author="ada")


@pytest.mark.parametrize("column", ["document", "comment", "author", "version", "published_at"])
def test_the_database_refuses_to_change_a_version(published: Document, column: str) -> None:
    value = {"document": "{}", "version": 7, "published_at": "2020-01-01"}.get(column, "x")
    with pytest.raises(IntegrityError, match="immutable"):
        execute(f"UPDATE policies_policyversion SET {column} = %s", value)


def test_the_database_refuses_to_delete_a_version(published: Document) -> None:
    with pytest.raises(IntegrityError, match="immutable"):
        execute("DELETE FROM policies_policyversion")


def test_the_database_refuses_a_second_live_version(published: Document) -> None:
    with pytest.raises(IntegrityError, match="one_live"):
        execute(
            "INSERT INTO policies_policyversion"
            " (pool_id, version, document, comment, author, published_at, state)"
            " SELECT pool_id, 2, document, comment, author, published_at, state FROM policies_policyversion"
        )


def test_publishing_leaves_an_audit_entry_with_before_and_after(published: Document) -> None:
    publish(heavier(published), comment="more for high", author="bo")
    entry = entries_of("policy", f"{POOL}/v2").get()
    assert (entry.actor, entry.action, entry.before["version"], entry.after["version"]) == (
        "bo",
        "publish",
        1,
        2,
    )


# --- the announcement ---


@pytest.mark.django_db(transaction=True)
def test_a_committed_version_is_announced(document: Document) -> None:
    publish(document)
    said = announcing.announced(POOL)
    assert said == selectors.announcement_of(selectors.active(POOL))


@pytest.mark.django_db(transaction=True)
def test_a_version_that_is_rolled_back_by_the_database_is_never_announced(document: Document) -> None:
    with transaction.atomic():
        publish(document)
        transaction.set_rollback(True)
    assert announcing.announced(POOL) is None


@pytest.mark.django_db(transaction=True)
def test_workers_hear_of_it_in_the_stream_of_changes(document: Document) -> None:
    publish(document)
    entries = redis_client().xrange(keys.CHANGES.of(POOL))
    assert [scripts.read_change(fields).op for _, fields in entries] == [scripts.ChangeOp.POLICY]


def test_reconciling_announces_what_redis_forgot(published: Document) -> None:
    redis_client().delete(keys.POLICY.of(POOL))
    assert announcing.reconcile(POOL)
    assert announcing.announced(POOL).version == 1


def test_reconciling_corrects_a_version_from_a_database_that_was_restored(published: Document) -> None:
    ghost = PolicyAnnouncement(version=9, document="{}", published_at=0.0)
    run_script(scripts.announce_policy(POOL, ghost))
    announcing.reconcile(POOL)
    assert announcing.announced(POOL).version == 1


@pytest.mark.django_db(transaction=True)
def test_reconciling_beside_a_publish_never_goes_back(
    document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reconciling task has read v1 from Postgres; v2 is published before it announces."""
    publish(document)
    redis_client().delete(keys.POLICY.of(POOL))
    v1 = selectors.active(POOL)
    publish(heavier(document))
    redis_client().delete(keys.POLICY.of(POOL))
    monkeypatch.setattr(selectors, "find_active", lambda pool: publish_announcement_of(2) or v1)
    announcing.reconcile(POOL)
    assert announcing.announced(POOL).version == 2


def publish_announcement_of(version: int) -> None:
    announcing.announce(selectors.version_of(POOL, version))


def test_reconciling_leaves_alone_what_agrees(published: Document) -> None:
    announcing.reconcile(POOL)
    assert not announcing.reconcile(POOL)


@pytest.mark.django_db(transaction=True)
def test_two_who_publish_at_once_get_two_versions_or_one_refusal(document: Document) -> None:
    """Both start from v1 at a barrier: one becomes v2, the other is told. Without a base both get through."""
    publish(document)
    outcomes = at_once(lambda: publish(document, based_on=1), lambda: publish(document, based_on=1))
    assert sorted(outcomes) == ["Changed", "v2"]
    outcomes = at_once(lambda: publish(document), lambda: publish(document))
    assert sorted(outcomes) == ["v3", "v4"]
    assert announcing.announced(POOL).version == 4


def at_once(*jobs: Any) -> list[str]:
    barrier, outcomes = threading.Barrier(len(jobs), timeout=10), []

    def run(job: Any) -> None:
        barrier.wait()
        try:
            outcomes.append(f"v{job().version}")
        except Changed:
            outcomes.append("Changed")
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return outcomes
