"""Every refusal: its status, OpenAI's shape, and what would be right."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import httpx
import openai
import pytest
import redis
from django.conf import settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys
from tests.gateway.conftest import MODEL_NAME, POOL, Gateway, Tenant, announce, make_tenant, wait_until
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = {"model": MODEL_NAME, "messages": HELLO}


def post(http: httpx.Client, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return http.post(path, json=CHAT | fields)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer tg_wrong"}, {"Authorization": "Basic abc"}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_wrong_key_is_401(gateway: Gateway, header: dict[str, str], path: str) -> None:
    response = httpx.post(gateway.url + path, json=CHAT, headers=header)
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")


def test_models_need_a_key(gateway: Gateway) -> None:
    assert httpx.get(gateway.url + "/v1/models").status_code == 401


def test_the_openai_client_raises_its_own_error_for_a_wrong_key(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="tg_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_class_that_the_key_is_not_allowed_is_403(http: httpx.Client) -> None:
    only_low = make_tenant(default_class="low")
    response = http.post(
        "/v1/chat/completions",
        json=CHAT | {"priority": "high"},
        headers={"Authorization": f"Bearer {only_low.token}"},
    )
    assert (response.status_code, error_of(response)["param"]) == (403, "priority")


def test_a_class_that_does_not_exist_is_400(http: httpx.Client) -> None:
    response = post(http, priority="urgent")
    assert response.status_code == 400
    assert "high, medium, low" in error_of(response)["message"]


def test_an_unknown_model_is_404(http: httpx.Client) -> None:
    response = post(http, model="gpt-9")
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_showing_an_unknown_model_is_404(http: httpx.Client) -> None:
    assert http.get("/v1/models/gpt-9").status_code == 404


def test_an_unknown_route_is_404(http: httpx.Client) -> None:
    assert error_of(http.get("/v1/nothing"))["code"] == "not_found"


def test_a_wrong_method_is_405(http: httpx.Client) -> None:
    response = http.get("/v1/chat/completions")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")


def test_a_body_that_is_not_json_is_400(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", content=b"{")
    assert (response.status_code, error_of(response)["code"]) == (400, "invalid_json")


def test_an_unsupported_parameter_is_400_by_name(http: httpx.Client) -> None:
    response = post(http, tools=[{"type": "function"}])
    assert (response.status_code, error_of(response)["param"]) == (400, "tools")


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_400(http: httpx.Client, prompt: Any) -> None:
    response = http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": prompt})
    assert (response.status_code, error_of(response)["code"]) == (400, "empty_prompt")


def test_a_prompt_that_fills_the_context_is_400_with_both_lengths(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": [5] * 300})
    assert response.status_code == 400
    assert "300 tokens" in error_of(response)["message"]
    assert "255" in error_of(response)["message"]


def test_an_answer_that_does_not_fit_the_context_is_400_with_both_lengths(http: httpx.Client) -> None:
    response = http.post(
        "/v1/completions", json={"model": MODEL_NAME, "prompt": [5] * 200, "max_tokens": 100}
    )
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, "max_tokens")
    assert "300" in error["message"]
    assert "256" in error["message"]


@pytest.mark.parametrize("ids", [[-1], [10**6]])
def test_token_ids_outside_the_vocabulary_are_400(http: httpx.Client, ids: list[int]) -> None:
    response = http.post("/v1/completions", json={"model": MODEL_NAME, "prompt": ids})
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def test_a_bias_for_a_token_that_does_not_exist_is_400(http: httpx.Client) -> None:
    assert error_of(post(http, logit_bias={"999999": 1}))["param"] == "logit_bias"


def test_a_class_limits_prompt_and_answer(http: httpx.Client, gateway: Gateway, policy: Policy) -> None:
    classes = [one.model_copy(update={"max_output_tokens": 5}) for one in policy.classes]
    announce(policy.model_copy(update={"classes": tuple(classes)}))
    wait_until(lambda: gateway.runtime.view.policy.classes[0].max_output_tokens == 5, what="the policy")
    assert error_of(post(http, max_tokens=6))["param"] == "max_tokens"
    assert post(http).json()["usage"]["completion_tokens"] == 5


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    big = "x" * settings.TIDEGATE.max_body_bytes
    response = post(http, messages=[{"role": "user", "content": big}])
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


def test_a_client_that_sends_a_large_body_before_it_reads_gets_its_413(
    gateway: Gateway, tenant: Tenant
) -> None:
    size = 16 * settings.TIDEGATE.max_body_bytes
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
        f"Authorization: Bearer {tenant.token}\r\n\r\n"
    )
    port = int(gateway.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(head.encode() + b" " * size)
        assert one.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_counted_while_it_is_read(gateway: Gateway, tenant: Tenant) -> None:
    limit = settings.TIDEGATE.max_body_bytes
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        f"Authorization: Bearer {tenant.token}\r\n\r\n"
    )
    port = int(gateway.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(head.encode())
        for _ in range(limit // 0x10000 + 1):
            one.sendall(chunk)
        assert one.recv(100).startswith(b"HTTP/1.1 413")


def test_without_a_worker_it_is_503(gateway: Gateway, tenant: Tenant) -> None:
    response = httpx.post(
        gateway.url + "/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {tenant.token}"}
    )
    error = error_of(response)
    assert (response.status_code, error["code"], "retry-after" in response.headers) == (503, "no_worker", False)
    assert error["message"] == "No worker is connected for this model; requests are served again once one is."


def test_a_drained_pool_says_since_when_and_no_time_to_come_back(
    http: httpx.Client, gateway: Gateway, worker: ScriptedWorker, valkey: redis.Redis
) -> None:
    worker.announce(draining=True)
    ordered = time.gmtime(valkey.time()[0])
    valkey.set(keys.WORKER_CONTROL.of(POOL, worker.name), keys.DRAIN, ex=keys.DRAIN_TTL_S)
    wait_until(lambda: gateway.runtime.view.drained_at is not None, what="the order to be seen")
    response = http.post("/v1/chat/completions", json=CHAT)
    message = error_of(response)["message"]
    assert (response.status_code, "retry-after" in response.headers) == (503, False)
    assert f"every worker is draining, as an operator ordered at {ordered.tm_hour:02}:" in message


def test_a_full_queue_is_429_with_a_time_to_come_back(
    http: httpx.Client, gateway: Gateway, worker: ScriptedWorker, policy: Policy, valkey: redis.Redis
) -> None:
    classes = [one.model_copy(update={"queue_limit": 1}) for one in policy.classes]
    announce(policy.model_copy(update={"classes": tuple(classes)}))
    wait_until(lambda: gateway.runtime.view.policy.classes[0].queue_limit == 1, what="the policy")
    valkey.hset(keys.CLASS_LOAD.of(POOL), mapping={"medium:num": 1, "medium:cost": 10})
    response = post(http)
    assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
    assert 1 <= int(response.headers["retry-after"]) <= 120


def test_a_queue_that_would_outlast_the_bound_is_429_with_the_reason_in_words(
    http: httpx.Client, valkey: redis.Redis
) -> None:
    valkey.hset(keys.CLASS_LOAD.of(POOL), mapping={"medium:num": 500, "medium:cost": 1e9})
    response = post(http)
    assert (response.status_code, error_of(response)["code"]) == (429, "predicted_wait")
    assert "exceeds medium's bound of 30 s" in error_of(response)["message"]
    assert int(response.headers["retry-after"]) >= 1


def test_a_refused_request_gives_its_place_back(http: httpx.Client, valkey: redis.Redis) -> None:
    valkey.hset(keys.CLASS_LOAD.of(POOL), mapping={"medium:num": 500, "medium:cost": 1e9})
    post(http)
    assert valkey.hget(keys.CLASS_LOAD.of(POOL), "medium:num") == b"500"


@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 60}])
def test_a_tenant_over_its_quota_is_429(http: httpx.Client, limit: dict[str, int]) -> None:
    few = make_tenant(default_class="low", **limit)
    http.headers["Authorization"] = f"Bearer {few.token}"
    responses = [post(http, max_tokens=4) for _ in range(4)]
    refused = [one for one in responses if one.status_code == 429]
    assert responses[0].status_code == 200
    assert error_of(refused[0])["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused[0].headers["retry-after"]) <= 60


def test_a_worker_that_fails_a_request_makes_it_500(http: httpx.Client, worker: ScriptedWorker) -> None:
    worker.error = "The prompt could not be computed."
    response = post(http)
    assert (response.status_code, error_of(response)["message"]) == (500, "The prompt could not be computed.")


def test_a_failure_in_the_middle_of_a_stream_is_an_event(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    worker.step_s = 0.05
    stream = client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True)
    next(iter(stream))
    worker.error = "The device is gone."
    with pytest.raises(openai.APIError, match="The device is gone"):
        list(stream)


def test_health_is_200_and_readiness_says_what_is_missing(gateway: Gateway) -> None:
    assert httpx.get(gateway.url + "/healthz").status_code == 200
    response = httpx.get(gateway.url + "/readyz")
    assert response.status_code == 503
    assert response.json()["checks"] == {
        "accepting": True,
        "policy": True,
        "worker": False,
        "redis": True,
        "postgres": True,
    }


def test_asking_for_readiness_uses_up_no_connections(gateway: Gateway) -> None:
    num_asked = settings.TIDEGATE.database_connections + 4
    answers = [httpx.get(gateway.url + "/readyz").json()["checks"]["postgres"] for _ in range(num_asked)]
    assert answers == [True] * num_asked


def test_readiness_is_200_once_a_worker_lives(gateway: Gateway, worker: ScriptedWorker) -> None:
    wait_until(lambda: httpx.get(gateway.url + "/readyz").status_code == 200, what="readiness")


def test_a_compressed_body_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", content=b"x", headers={"Content-Encoding": "gzip"})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported_encoding")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["temperature", "stop", "logit_bias", "max_tokens", "stream_options", "n", "seed", "messages", "prompt",
     "priority", "top_p", "metadata", "user", "logprobs", "top_logprobs", "min_tokens", "tools", "model"]
)  # fmt: skip


@given(
    fields=st.dictionaries(NAMES, JSON, max_size=4), path=st.sampled_from(["chat/completions", "completions"])
)
@hypothesis_settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_body_makes_the_gateway_fail(http: httpx.Client, fields: dict[str, Any], path: str) -> None:
    base = CHAT if path.startswith("chat") else {"model": MODEL_NAME, "prompt": "Hi"}
    body = json.dumps({**base, "max_tokens": 2, **fields})
    response = http.post(f"/v1/{path}", content=body.encode())
    assert response.status_code in {200, 400, 403, 404}


@given(data=st.binary(max_size=200))
@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_make_the_gateway_fail(http: httpx.Client, data: bytes) -> None:
    assert http.post("/v1/chat/completions", content=data).status_code == 400


def test_a_revoked_key_stops_working_within_the_caches_time(http: httpx.Client, gateway: Gateway) -> None:
    from controlplane.tenants.models import ApiKey
    from controlplane.tenants.services import revoke_key

    one = make_tenant(default_class="low")
    headers = {"Authorization": f"Bearer {one.token}"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    revoke_key(key_id=ApiKey.objects.get(tenant_id=one.id).pk, actor="ada")
    wait_until(
        lambda: http.get("/v1/models", headers=headers).status_code == 401, timeout_s=7, what="the revocation"
    )
