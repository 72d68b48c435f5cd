"""The REST API as its clients see it: who may, what comes back, one shape for all that goes wrong."""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import global_settings
from django.contrib.auth.models import User
from django.test import override_settings
from rest_framework.test import APIClient

from controlplane.audit.selectors import entries
from controlplane.common.connections import redis_client
from controlplane.inference import services as inference
from controlplane.policies import services as policies
from controlplane.tenants.selectors import find_key
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import WorkerInfo, encode

from .conftest import PASSWORD, POOL, Document, completion

ACTIVE = "/api/v1/policies/active"
POLICIES = "/api/v1/policies"
SESSION = "/api/v1/session"


def error_of(response: Any) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert {"code", "message", "retryable", "mistakes"} <= error.keys()
    return error


# --- signing in ---


def sign_in(client: APIClient, username: str = "ada", password: str = PASSWORD) -> Any:
    token = client.get(SESSION).json()["csrf_token"]
    body = {"username": username, "password": password}
    return client.post(SESSION, body, headers={"X-CSRFToken": token})


def test_nobody_has_an_empty_name_and_a_token(anonymous: APIClient, db: None) -> None:
    body = anonymous.get(SESSION).json()
    assert (body["username"], len(body["csrf_token"])) == ("", 64)


def test_an_operator_signs_in(anonymous: APIClient, operator: User) -> None:
    assert sign_in(anonymous).json()["name"] == "Ada Lovelace"


@override_settings(PASSWORD_HASHERS=global_settings.PASSWORD_HASHERS)
def test_a_password_is_kept_and_known_again_by_the_installations_slow_hasher(
    anonymous: APIClient, db: None
) -> None:
    user = User.objects.create_superuser("ada", password=PASSWORD)
    assert user.password.startswith("pbkdf2_sha256$")
    assert sign_in(anonymous).status_code == 200


def test_the_session_says_who_may_only_look(anonymous: APIClient, operator: User, viewer: User) -> None:
    nobody = anonymous.get(SESSION).json()["may_operate"]
    known = [sign_in(anonymous, name).json()["may_operate"] for name in ("ada", "vic")]
    assert [nobody, *known] == [False, True, False]


def test_the_session_lasts(anonymous: APIClient, operator: User) -> None:
    sign_in(anonymous)
    assert anonymous.get(SESSION).json()["username"] == "ada"


def test_the_token_that_signing_in_returns_is_good_for_signing_out(
    anonymous: APIClient, operator: User
) -> None:
    token = sign_in(anonymous).json()["csrf_token"]
    assert anonymous.delete(SESSION, headers={"X-CSRFToken": token}).json()["username"] == ""


def test_a_wrong_password_is_refused(anonymous: APIClient, operator: User) -> None:
    response = sign_in(anonymous, password="guess")
    assert (response.status_code, error_of(response)["message"]) == (
        401,
        "The name or the password is wrong.",
    )


def test_who_is_no_operator_is_refused_alike(anonymous: APIClient, db: None) -> None:
    User.objects.create_user("eve", password=PASSWORD)
    assert sign_in(anonymous, "eve").status_code == 401


def test_guessing_passwords_is_slowed_down(anonymous: APIClient, operator: User) -> None:
    for _ in range(10):
        sign_in(anonymous, password="guess")
    response = sign_in(anonymous)
    assert (response.status_code, response["Retry-After"]) == (429, "300")


def guess(client: APIClient, num: int, address: str, username: str = "ada") -> None:
    client.defaults["REMOTE_ADDR"] = address
    for _ in range(num):
        sign_in(client, username, password="guess")


def test_whoever_guesses_does_not_lock_the_operator_out(anonymous: APIClient, operator: User) -> None:
    guess(anonymous, 10, "203.0.113.9")
    anonymous.defaults["REMOTE_ADDR"] = "192.0.2.1"
    assert sign_in(anonymous).status_code == 200


def test_other_names_from_one_address_are_bounded_too(anonymous: APIClient, operator: User) -> None:
    for number in range(10):
        guess(anonymous, 3, "203.0.113.9", f"nobody-{number}")
    assert sign_in(anonymous).status_code == 429


def test_many_addresses_do_not_make_guessing_faster(anonymous: APIClient, operator: User) -> None:
    for number in range(10):
        guess(anonymous, 10, f"203.0.113.{number}")
    anonymous.defaults["REMOTE_ADDR"] = "203.0.113.77"
    assert sign_in(anonymous).status_code == 429


def test_an_address_that_a_name_signed_in_from_stays_open_to_it(anonymous: APIClient, operator: User) -> None:
    anonymous.defaults["REMOTE_ADDR"] = "192.0.2.1"
    sign_in(anonymous)
    for number in range(10):
        guess(anonymous, 10, f"203.0.113.{number}")
    anonymous.defaults["REMOTE_ADDR"] = "192.0.2.1"
    assert sign_in(anonymous).status_code == 200


def test_signing_in_without_a_csrf_token_is_refused(anonymous: APIClient, operator: User) -> None:
    response = anonymous.post(SESSION, {"username": "ada", "password": PASSWORD})
    assert (response.status_code, error_of(response)["code"]) == (403, "not_allowed")


# --- who may ---

OPERATORS_ONLY = [
    ("get", ACTIVE),
    ("get", POLICIES),
    ("get", f"{POLICIES}/1"),
    ("get", f"{POLICIES}/schema"),
    ("post", f"{POLICIES}/validate"),
    ("post", POLICIES),
    ("post", f"{POLICIES}/1/rollback"),
    ("get", "/api/v1/fleet/workers"),
    ("post", "/api/v1/fleet/workers/gpu-0/drain"),
    ("delete", "/api/v1/fleet/workers/gpu-0/drain"),
    ("post", "/api/v1/playground/key"),
]


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_anonymous_callers_are_asked_to_sign_in(
    anonymous: APIClient, db: None, method: str, path: str
) -> None:
    response = getattr(anonymous, method)(path)
    assert (response.status_code, error_of(response)["code"]) == (401, "not_signed_in")


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_an_api_key_opens_no_operator_route(program: APIClient, method: str, path: str) -> None:
    assert getattr(program, method)(path).status_code == 401


def test_a_write_by_session_needs_a_csrf_token(operator: User, published: Document) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(operator)
    assert client.post(POLICIES, {"document": published}, headers={"If-Match": "*"}).status_code == 403


def test_staff_without_the_right_may_look(viewer: User, published: Document) -> None:
    client = APIClient()
    client.force_login(viewer)
    assert client.get(ACTIVE).status_code == 200


def test_staff_without_the_right_may_not_publish(viewer: User, published: Document) -> None:
    client = APIClient()
    client.force_login(viewer)
    response = client.post(POLICIES, {"document": published}, headers={"If-Match": "*"})
    assert (response.status_code, "publish_policy" in error_of(response)["message"]) == (403, True)


# --- policies ---


def publish(api: APIClient, document: Document, base: str | None = '"v1"', comment: str = "why") -> Any:
    headers = {} if base is None else {"If-Match": base}
    return api.post(POLICIES, {"document": document, "comment": comment}, headers=headers)


def test_the_active_policy_comes_with_its_entity_tag(api: APIClient, published: Document) -> None:
    response = api.get(ACTIVE)
    assert (response["ETag"], response.json()["document"]) == ('"v1"', published)


@pytest.mark.parametrize("known", ['"v1"', 'W/"v1"', '"v0", "v1"', "*"])
def test_whoever_has_the_active_policy_gets_it_not_again(
    api: APIClient, published: Document, known: str
) -> None:
    response = api.get(ACTIVE, headers={"If-None-Match": known})
    assert (response.status_code, response["ETag"], response.content) == (304, '"v1"', b"")


def test_whoever_has_an_older_policy_gets_the_active_one(api: APIClient, published: Document) -> None:
    publish(api, published)
    response = api.get(ACTIVE, headers={"If-None-Match": '"v1"'})
    assert (response.status_code, response.json()["version"]) == (200, 2)


def test_before_the_first_policy_there_is_none(api: APIClient) -> None:
    assert api.get(ACTIVE).status_code == 404


def test_publishing_makes_a_new_version(api: APIClient, published: Document) -> None:
    response = publish(api, published)
    assert (response.status_code, response["ETag"], response.json()["author"]) == (201, '"v2"', "ada")


def test_publishing_on_an_older_version_is_refused_with_412(api: APIClient, published: Document) -> None:
    publish(api, published)
    response = publish(api, published, base='"v1"')
    assert (response.status_code, error_of(response)["code"]) == (412, "changed")


def test_publishing_needs_to_know_the_version_it_is_based_on(api: APIClient, published: Document) -> None:
    assert publish(api, published, base=None).status_code == 428


def test_an_unreadable_base_is_a_mistake(api: APIClient, published: Document) -> None:
    response = publish(api, published, base='"41"')
    assert (response.status_code, error_of(response)["mistakes"][0]["path"]) == (400, "If-Match")


def test_bad_documents_get_every_path(api: APIClient, published: Document) -> None:
    published["classes"][1]["rank"] = "first"
    published["starvation"]["guard"] = 2
    response = publish(api, published)
    assert response.status_code == 400
    assert [one["path"] for one in error_of(response)["mistakes"]] == ["classes.1.rank", "starvation.guard"]


def test_validation_publishes_nothing(api: APIClient, published: Document) -> None:
    assert api.post(f"{POLICIES}/validate", {"document": published}).json() == {"valid": True}
    assert api.get(ACTIVE).json()["version"] == 1


def test_validation_names_mistakes(api: APIClient, published: Document) -> None:
    published["classes"][0]["max_wait_s"] = 0.05
    response = api.post(f"{POLICIES}/validate", {"document": published})
    assert (response.status_code, error_of(response)["mistakes"][0]["path"]) == (400, "classes.0.max_wait_s")


def test_a_body_without_a_document_says_so(api: APIClient, published: Document) -> None:
    response = api.post(f"{POLICIES}/validate", {"policy": {}})
    assert [one["path"] for one in error_of(response)["mistakes"]] == ["document", "policy"]


def test_the_schema_describes_every_field(api: APIClient) -> None:
    assert {"classes", "batch_limit", "step"} <= api.get(f"{POLICIES}/schema").json()["properties"].keys()


def test_rolling_back_publishes_the_old_document(api: APIClient, published: Document) -> None:
    changed = copy.deepcopy(published)
    changed["classes"][0]["weight"] = 50
    publish(api, changed)
    response = api.post(f"{POLICIES}/1/rollback", {"comment": "back"})
    assert (response.status_code, response.json()["version"], response.json()["document"]) == (
        201,
        3,
        published,
    )


def test_versions_come_in_pages_newest_first(api: APIClient, published: Document) -> None:
    for _ in range(27):
        policies.publish(pool=POOL, document=published, comment="", author="ada")
    first = api.get(POLICIES).json()
    second = api.get(POLICIES, {"cursor": first["next"]}).json()
    numbers = [one["version"] for one in first["results"] + second["results"]]
    assert (numbers, second["next"]) == (list(range(28, 0, -1)), None)


def test_the_list_of_versions_takes_as_many_queries_for_many_as_for_one(
    api: APIClient, published: Document, django_assert_num_queries: Callable[..., Any]
) -> None:
    def count() -> int:
        with django_assert_num_queries(3) as queries:  # session, user, versions
            api.get(POLICIES)
        return len(queries)

    one = count()
    for _ in range(10):
        policies.publish(pool=POOL, document=published, comment="", author="ada")
    assert count() == one


@pytest.mark.parametrize("cursor", ["x", "-1", "9" * 30, "9" * 5000, "²"])
def test_a_cursor_that_is_none_is_a_mistake(api: APIClient, published: Document, cursor: str) -> None:
    response = api.get(POLICIES, {"cursor": cursor})
    assert (response.status_code, error_of(response)["mistakes"][0]["path"]) == (400, "cursor")


# --- fleet and playground ---


def announce_worker(name: str, lease_s: float, **fields: Any) -> None:
    redis = redis_client()
    redis.zadd(keys.WORKER_LEASES.of(POOL), {name: redis.time()[0] + lease_s})
    info = WorkerInfo(
        worker=name, pool=POOL, model="smol", started_at=1.0, num_slots=8, num_blocks=64, block_size=16,
        max_model_len=8192, **fields,
    )  # fmt: skip
    redis.set(keys.WORKER_INFO.of(POOL, name), encode(info))


def test_workers_are_listed_with_the_policy_version_they_run(api: APIClient) -> None:
    announce_worker("gpu-1", 5, policy_version=3, draining=True)
    announce_worker("gpu-0", 5, policy_version=4)
    rows = api.get("/api/v1/fleet/workers").json()["results"]
    assert [(one["id"], one["state"], one["policy_version"]) for one in rows] == [
        ("gpu-0", "live", 4),
        ("gpu-1", "draining", 3),
    ]


def test_a_worker_whose_lease_ran_out_is_silent(api: APIClient) -> None:
    announce_worker("gpu-0", -1)
    assert api.get("/api/v1/fleet/workers").json()["results"][0]["state"] == "silent"


def test_a_worker_that_has_not_announced_itself_has_null_figures(api: APIClient) -> None:
    redis_client().zadd(keys.WORKER_LEASES.of(POOL), {"gpu-0": redis_client().time()[0] + 5})
    assert api.get("/api/v1/fleet/workers").json()["results"][0]["policy_version"] is None


def test_without_workers_the_list_is_empty(api: APIClient) -> None:
    assert api.get("/api/v1/fleet/workers").json() == {"results": []}


def test_the_playground_key_opens_every_class(api: APIClient, published: Document) -> None:
    body = api.post("/api/v1/playground/key").json()
    assert body["classes"] == ["high", "medium", "low"]
    assert find_key(body["key"]).allowed_classes == {"high", "medium", "low"}


def test_who_may_not_publish_plays_in_the_default_class_and_below(
    viewer: User, published: Document
) -> None:
    client = APIClient()
    client.force_login(viewer)
    body = client.post("/api/v1/playground/key").json()
    assert (body["classes"], body["default_class"]) == (["low"], "low")
    assert find_key(body["key"]).allowed_classes == {"low"}


def test_the_playground_key_is_the_operators_and_expires(api: APIClient, published: Document) -> None:
    body = api.post("/api/v1/playground/key").json()
    entry = entries().filter(object_type="api_key").first()
    assert (entry.actor, entry.after["expires_at"] is not None, body["key"] in str(entry.after)) == (
        "ada",
        True,
        False,
    )


# --- native requests ---


def test_a_program_reads_the_requests_of_its_tenant(program: APIClient, accepted: Callable[..., Any]) -> None:
    one = accepted(endpoint="requests.chat")
    inference.record_accepted([one])
    inference.mark_finished([completion(one.header.request_id)])
    body = program.get(f"/api/v1/requests/{one.header.request_id}").json()
    assert (body["state"], body["output"], body["timings"]["ttft_s"], body["usage"]["num_output_tokens"]) == (
        "succeeded", "Hi there", 0.25, 2,
    )  # fmt: skip


def test_a_request_of_another_tenant_does_not_exist(accepted: Callable[..., Any]) -> None:
    from controlplane.tenants.services import create_key, create_tenant

    one = accepted()
    inference.record_accepted([one])
    other = create_key(tenant=create_tenant(slug="rival", name="Rival", actor="ada"), name="k", actor="ada")
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {other.token}")
    assert client.get(f"/api/v1/requests/{one.header.request_id}").status_code == 404


def test_an_operator_reads_any_request(api: APIClient, accepted: Callable[..., Any]) -> None:
    one = accepted()
    inference.record_accepted([one])
    assert api.get(f"/api/v1/requests/{one.header.request_id}").json()["tenant"] == "acme"


def test_a_request_is_read_in_one_query_beside_the_key(
    program: APIClient, accepted: Callable[..., Any], django_assert_num_queries: Callable[..., Any]
) -> None:
    one = accepted()
    inference.record_accepted([one])
    with django_assert_num_queries(2):
        program.get(f"/api/v1/requests/{one.header.request_id}")


def test_a_session_may_not_send_requests(api: APIClient) -> None:
    assert api.post("/api/v1/requests", {"model": "smol", "prompt": "hi"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"model": "smol"}, "messages"),
        ({"model": "smol", "prompt": "hi", "messages": []}, "messages"),
        ({"model": "smol", "prompt": "hi", "stream": True}, "stream"),
    ],
)
def test_a_body_of_neither_kind_is_a_mistake(program: APIClient, body: Document, path: str) -> None:
    response = program.post("/api/v1/requests", body)
    assert (response.status_code, error_of(response)["mistakes"][0]["path"]) == (400, path)


@pytest.mark.parametrize("token", ["tg_unknown", "", "tg_\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_an_unknown_key_is_refused(db: None, token: str) -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    response = client.get(f"/api/v1/requests/{uuid.uuid4()}")
    assert (response.status_code, response["WWW-Authenticate"]) == (401, 'Bearer realm="api"')


# --- everything that goes wrong ---


def test_an_unknown_route_has_the_shape(anonymous: APIClient) -> None:
    response = anonymous.get("/api/v1/policy")
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


def test_an_unknown_object_has_the_shape(api: APIClient, published: Document) -> None:
    response = api.get(f"{POLICIES}/99")
    assert (response.status_code, error_of(response)["message"]) == (
        404,
        "The pool default has no policy v99.",
    )


def test_a_wrong_verb_has_the_shape_and_names_the_right_ones(api: APIClient) -> None:
    response = api.delete(POLICIES)
    assert (response.status_code, error_of(response)["code"], response["Allow"]) == (
        405, "method_not_allowed", "GET, POST, HEAD, OPTIONS",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/live", "/policies", "/metrics"])
def test_a_wrong_verb_beside_the_api_has_the_shape_too(anonymous: APIClient, path: str) -> None:
    response = anonymous.options(path, HTTP_ACCEPT="application/json")
    code, allowed = response.json()["error"]["code"], response["Allow"]
    assert (response.status_code, code, allowed) == (405, "method_not_allowed", "GET, HEAD")


def test_a_form_of_answer_that_there_is_not_is_the_callers_mistake(api: APIClient) -> None:
    response = api.get(POLICIES, HTTP_ACCEPT="text/csv")
    assert (response.status_code, error_of(response)["code"]) == (406, "not_acceptable")


def test_a_body_that_is_not_json_has_the_shape(api: APIClient) -> None:
    response = api.post(f"{POLICIES}/validate", "{", content_type="application/json")
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid")


def test_a_body_that_is_nested_too_deeply_has_the_shape(api: APIClient) -> None:
    body = '{"document":' + "[" * 100_000 + "]" * 100_000 + "}"
    response = api.post(f"{POLICIES}/validate", body, content_type="application/json")
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid")


def test_a_body_of_another_type_has_the_shape(api: APIClient) -> None:
    response = api.post(f"{POLICIES}/validate", "a=b", content_type="text/plain")
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")


def test_a_body_that_is_too_large_has_the_shape(api: APIClient) -> None:
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
        response = api.post(f"{POLICIES}/validate", {"document": {"x": "y" * 200}})
    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")


def test_an_unknown_host_has_the_shape(anonymous: APIClient) -> None:
    response = anonymous.get(SESSION, headers={"Host": "evil.example"})
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid")


def test_a_failure_of_ours_has_the_shape_and_an_id_that_the_log_knows(
    api: APIClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("controlplane.fleet.selectors.workers", lambda pool: 1 / 0)
    error = error_of(api.get("/api/v1/fleet/workers"))
    assert (error["code"], "division" in error["message"]) == ("internal", False)
    assert error["id"] in caplog.text


def test_a_redis_that_does_not_answer_is_worth_a_retry(
    api: APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import redis

    def refuse(pool: str) -> None:
        raise redis.ConnectionError("refused")

    monkeypatch.setattr("controlplane.fleet.selectors.workers", refuse)
    response = api.get("/api/v1/fleet/workers")
    assert (response.status_code, error_of(response)["retryable"]) == (503, True)


# --- pages ---


def test_people_get_the_page_on_every_route_of_the_client(
    anonymous: APIClient, tmp_path: Any, settings: Any
) -> None:
    settings.FRONTEND_DIST = tmp_path
    (tmp_path / "index.html").write_text("<title>Tidegate</title>")
    for path in ("/", "/live", "/policies", "/policies/41", "/playground", "/sign-in"):
        assert b"Tidegate" in anonymous.get(path).content


def test_without_a_build_the_page_says_how_to_make_one(
    anonymous: APIClient, tmp_path: Any, settings: Any
) -> None:
    settings.FRONTEND_DIST = tmp_path
    response = anonymous.get("/")
    assert (response.status_code, b"npm run build" in response.content) == (503, True)


def test_every_page_forbids_foreign_and_inline_scripts(anonymous: APIClient) -> None:
    rules = anonymous.get("/live")["Content-Security-Policy"].split("; ")
    assert "default-src 'self'" in rules
    assert not [rule for rule in rules if rule.startswith("script-src")]


def test_the_documentation_needs_no_other_server(anonymous: APIClient) -> None:
    html = anonymous.get("/api/docs").content.decode()
    assert "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js" in html
    assert not re.search(r"""(src|href)=["'](https?:)?//""", html)


SCRIPT = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"


def test_files_are_served_whole_so_that_asgi_does_not_stream_them_synchronously(anonymous: APIClient) -> None:
    response = anonymous.get(SCRIPT)
    assert (response.status_code, response.streaming, response["Content-Type"].split(";")[0]) == (
        200, False, "text/javascript",
    )  # fmt: skip


def test_a_part_of_a_file_can_be_asked_for(anonymous: APIClient) -> None:
    response = anonymous.get(SCRIPT, headers={"Range": "bytes=10-19"})
    assert (response.status_code, len(response.content)) == (206, 10)


def test_a_file_that_is_known_is_not_sent_again(anonymous: APIClient) -> None:
    etag = anonymous.get(SCRIPT)["ETag"]
    assert anonymous.get(SCRIPT, headers={"If-None-Match": etag}).status_code == 304


# --- people at wrong addresses, and a frontend built anew ---

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("path", ["/polices", "/api/v1/nothing", "/admin-panel"])
def test_a_browser_at_a_wrong_address_gets_a_page_with_a_way_back(anonymous: APIClient, path: str) -> None:
    response = anonymous.get(path, HTTP_ACCEPT=BROWSER)
    text = response.content.decode()
    assert (response.status_code, response["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert f"There is nothing at {path}." in text
    assert '<a href="/live">Live</a>' in text


def test_a_mistyped_page_is_guessed(anonymous: APIClient) -> None:
    assert 'Did you mean <a href="/policies">' in anonymous.get("/polices", HTTP_ACCEPT=BROWSER).content.decode()


def test_what_was_typed_is_text_not_markup(anonymous: APIClient) -> None:
    text = anonymous.get("/<script>alert(1)</script>", HTTP_ACCEPT=BROWSER).content.decode()
    assert "<script>" not in text


@pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
def test_a_program_at_a_wrong_address_gets_the_shape(anonymous: APIClient, accept: str) -> None:
    response = anonymous.get("/polices", HTTP_ACCEPT=accept)
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


def test_assets_that_were_built_after_the_start_are_served(settings: Any, tmp_path: Any) -> None:
    settings.FRONTEND_DIST = tmp_path
    client = APIClient()
    assert client.get("/assets/index-12345678.js").status_code == 404
    (tmp_path / "assets").mkdir()
    built = tmp_path / "assets" / "index-12345678.js"
    built.write_text("1")
    response = client.get("/assets/index-12345678.js")
    assert (response.status_code, "immutable" in response["Cache-Control"]) == (200, True)
    built.unlink()
    assert client.get("/assets/index-12345678.js").status_code == 404


def test_no_path_leads_out_of_the_assets(settings: Any, tmp_path: Any) -> None:
    settings.FRONTEND_DIST = tmp_path / "dist"
    (tmp_path / "dist" / "assets").mkdir(parents=True)
    (tmp_path / "secret").write_text("1")
    assert APIClient().get("/assets/../../secret").status_code == 404
