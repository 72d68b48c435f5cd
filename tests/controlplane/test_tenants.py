"""Tenants and keys: hashed at rest, revocable, audited."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils import timezone

from controlplane.audit.selectors import entries, entries_of
from controlplane.common.admin import title_of
from controlplane.common.errors import NotFound
from controlplane.tenants.models import ApiKey, Tenant
from controlplane.tenants.selectors import find_key
from controlplane.tenants.services import NewKey, create_key, create_tenant, revoke_key


def test_a_key_is_found_by_its_text(key: NewKey) -> None:
    found = find_key(key.token)
    assert (found.tenant_slug, found.default_class, found.allowed_classes) == (
        "acme",
        "low",
        {"low", "medium"},
    )


def test_finding_a_key_takes_one_query(key: NewKey, django_assert_num_queries: Callable[..., Any]) -> None:
    with django_assert_num_queries(1):
        find_key(key.token)


def test_the_text_of_a_key_is_nowhere_in_the_database(key: NewKey) -> None:
    row = ApiKey.objects.filter(pk=key.key.pk).values().get()
    assert not [value for value in row.values() if key.token in str(value)]


def test_no_audit_entry_shows_a_key_or_its_hash(key: NewKey) -> None:
    shown = str([entry.after for entry in entries()])
    assert (key.token in shown, key.key.digest in shown) == (False, False)


def test_an_unknown_key_is_not_found(key: NewKey) -> None:
    assert find_key(key.token + "x") is None


def test_a_revoked_key_is_not_found(key: NewKey) -> None:
    revoke_key(key_id=key.key.pk, actor="ada")
    assert find_key(key.token) is None


def test_revoking_twice_keeps_the_first_time_and_one_entry(key: NewKey) -> None:
    first = revoke_key(key_id=key.key.pk, actor="ada").revoked_at
    assert revoke_key(key_id=key.key.pk, actor="bo").revoked_at == first
    assert [one.action for one in entries_of("api_key", str(key.key.pk))] == ["revoke", "create"]


def test_revoking_nothing_is_an_error(db: None) -> None:
    with pytest.raises(NotFound, match="no API key 7"):
        revoke_key(key_id=7, actor="ada")


def test_an_expired_key_is_not_found(key: NewKey) -> None:
    ApiKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert find_key(key.token) is None


def test_a_weight_of_zero_is_refused(db: None) -> None:
    with pytest.raises(ValidationError, match="weight"):
        create_tenant(slug="acme", name="Acme", actor="ada", weight=0)


@pytest.mark.parametrize("sql", ["UPDATE audit_auditentry SET actor = 'eve'", "DELETE FROM audit_auditentry"])
def test_the_database_refuses_to_change_the_audit(key: NewKey, sql: str) -> None:
    with pytest.raises(IntegrityError, match="never changed"), transaction.atomic():
        connection.cursor().execute(sql)


# --- the admin ---


@pytest.fixture
def admin(operator: Any) -> Client:
    client = Client()
    client.force_login(operator)
    return client


def test_the_admin_has_no_door_of_its_own(db: None) -> None:
    assert Client().get("/admin/login/")["Location"] == "/sign-in"


def test_a_tenant_changed_in_the_admin_is_audited(admin: Client, key: NewKey) -> None:
    tenant = key.key.tenant
    form = {"name": "Acme Inc.", "weight": 2, "retention": "days", "retention_days": 7}
    assert admin.post(f"/admin/tenants/tenant/{tenant.pk}/change/", form).status_code == 302
    entry = entries_of("tenant", "acme").first()
    assert (entry.actor, entry.before["weight"], entry.after["weight"]) == ("ada", 1.0, 2.0)


def test_a_key_made_in_the_admin_is_shown_once(admin: Client, key: NewKey) -> None:
    form = {"tenant": key.key.tenant_id, "name": "ci", "default_class": "low", "allowed_classes": "medium"}
    page = admin.post("/admin/tenants/apikey/add/", form, follow=True).content.decode()
    assert ApiKey.objects.get(name="ci").prefix in page
    assert "copy it now" in page


def test_a_key_is_revoked_in_the_admin(admin: Client, key: NewKey) -> None:
    admin.post("/admin/tenants/apikey/", {"action": "revoke", "_selected_action": [key.key.pk]})
    assert find_key(key.token) is None


@pytest.mark.parametrize(
    "model", ["policies/policyversion", "audit/auditentry", "inference/inferencerequest"]
)
def test_what_must_not_change_has_no_form(admin: Client, model: str) -> None:
    assert (admin.get(f"/admin/{model}/").status_code, admin.get(f"/admin/{model}/add/").status_code) == (
        200,
        403,
    )


def test_the_list_of_keys_takes_as_many_queries_for_many_as_for_few(
    admin: Client, key: NewKey, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    for number in range(20):
        create_key(tenant=Tenant.objects.get(), name=str(number), actor="ada")
    with django_assert_max_num_queries(8):
        admin.get("/admin/tenants/apikey/")


@pytest.mark.parametrize("path", ["policies/policyversion", "policies/trial", "audit/auditentry"])
def test_what_is_recorded_can_be_read_but_not_changed(admin: Client, published: None, path: str) -> None:
    assert admin.get(f"/admin/{path}/").status_code == 200
    assert admin.get(f"/admin/{path}/add/", HTTP_ACCEPT="application/json").status_code == 403


def test_an_audit_entry_tells_when_and_shows_its_json_in_lines(admin: Client, published: None) -> None:
    entry = entries_of("policy", "default/v1").get()
    page = admin.get(f"/admin/audit/auditentry/{entry.pk}/change/").content.decode()
    assert f"{entry.at:%H:%M:%S} UTC" in page
    assert "\n  &quot;version&quot;: 1,\n" in page


def test_figures_have_titles_for_people(admin: Client, db: None) -> None:
    assert [title_of(one) for one in ("ttft_s", "num_prompt_tokens", "window_s")] == [
        "TTFT, s", "Prompt tokens", "Window, s",
    ]  # fmt: skip
