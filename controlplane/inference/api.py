"""Requests that are sent now and fetched later, for programs with an API key; operators may read any."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import IO, Any, Final, TypeVar
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.parsers import BaseParser
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.authentication import OperatorSession
from controlplane.common.errors import Invalid, Mistake, TidegateError, Unavailable
from controlplane.common.permissions import is_operator
from controlplane.gateway import runtime
from controlplane.gateway.errors import ApiError
from controlplane.inference import selectors
from controlplane.inference.models import InferenceRequest
from controlplane.inference.openapi import REQUEST_BODY
from controlplane.tenants.authentication import ApiKeyAuthentication, HasApiKey
from controlplane.tenants.selectors import KeyInfo

T = TypeVar("T")
GATEWAY_TIMEOUT_S: Final = 30.0
STATES: Final = ("queued", "running", "succeeded", "failed", "cancelled")


class TimingsSerializer(serializers.ModelSerializer):
    """Seconds; null for a part that was not reached."""

    class Meta:
        model = InferenceRequest
        fields = [
            "ttft_s", "tpot_s", "e2e_s", "queue_s", "formation_s", "prefill_s", "decode_s", "parked_s",
            "post_s",
        ]  # fmt: skip


class UsageSerializer(serializers.ModelSerializer):
    class Meta:
        model = InferenceRequest
        fields = ["num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "max_tokens"]


class RequestSerializer(serializers.ModelSerializer):
    state = serializers.SerializerMethodField(help_text="How far it has come.")
    tenant = serializers.CharField(source="tenant.slug")
    output = serializers.CharField(allow_null=True, help_text="Null until the end, and once it is not kept.")
    usage = UsageSerializer(source="*")
    timings = TimingsSerializer(source="*")

    class Meta:
        model = InferenceRequest
        fields = [
            "id", "state", "tenant", "class_id", "endpoint", "model", "stream", "arrived_at", "accepted_at",
            "first_token_at", "finished_at", "finish_reason", "error", "output", "parameters", "usage",
            "timings", "worker", "num_attempts", "num_preemptions",
        ]  # fmt: skip

    @extend_schema_field({"type": "string", "enum": list(STATES)})
    def get_state(self, request: InferenceRequest) -> str:
        return selectors.progress_of(request)


class RawJsonParser(BaseParser):
    """The body's bytes: the gateway parses and checks them, as it does for `/v1`."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        return stream.read()


class GatewayRefused(TidegateError):
    """The gateway's refusal in the REST API's shape."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message, [Mistake(error.param, error.message)] if error.param else ())
        self.status = error.status
        self.code = error.code or error.type
        self.retryable = error.retryable
        self.retry_after_s = None if error.retry_after_s is None else int(error.retry_after_s) + 1


REQUEST_ID = OpenApiParameter("request_id", UUID, OpenApiParameter.PATH)


class RequestsView(APIView):
    authentication_classes = [ApiKeyAuthentication]
    permission_classes = [HasApiKey]
    parser_classes = [RawJsonParser]

    @extend_schema(
        operation_id="request_create",
        request={"application/json": REQUEST_BODY},
        responses={202: RequestSerializer},
    )
    def post(self, request: Request) -> Response:
        """Send a request to be fetched later. The body is that of /v1/chat/completions or /v1/completions."""
        body: bytes = request.data or b""
        chat = _is_chat(body)
        request_id = _on_gateway(runtime.current().submit(request.auth, body, chat=chat))
        return _answer(selectors.request_of(UUID(request_id)), status.HTTP_202_ACCEPTED)


class RequestView(APIView):
    authentication_classes = [ApiKeyAuthentication, OperatorSession]

    def get_permissions(self) -> list[BasePermission]:
        return [HasApiKey()] if self.request.method == "DELETE" else [HasApiKeyOrIsOperator()]

    @extend_schema(operation_id="request_read", parameters=[REQUEST_ID], responses=RequestSerializer)
    def get(self, request: Request, request_id: UUID) -> Response:
        """State, timings, output. With a key: the requests of its tenant. With an operator's session: any."""
        return _answer(selectors.request_of(request_id, tenant_id=_tenant_id(request)))

    @extend_schema(
        operation_id="request_cancel",
        parameters=[REQUEST_ID],
        request=None,
        responses={202: RequestSerializer},
    )
    def delete(self, request: Request, request_id: UUID) -> Response:
        """Cancel. Its worker ends it within a step; one that has ended stays as it is."""
        found = selectors.request_of(request_id, tenant_id=_tenant_id(request))
        if not found.is_terminal:
            _on_gateway(runtime.current().cancel(str(found.pk)))
        return _answer(found, status.HTTP_202_ACCEPTED)


class HasApiKeyOrIsOperator(BasePermission):
    message = "This needs an API key or an operator's session."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.auth, KeyInfo) or is_operator(request.user)


def _tenant_id(request: Request) -> int | None:
    return request.auth.tenant_id if isinstance(request.auth, KeyInfo) else None


def _answer(found: InferenceRequest, status_code: int = status.HTTP_200_OK) -> Response:
    headers = {"Location": f"/api/v1/requests/{found.pk}"}
    return Response(RequestSerializer(found).data, status=status_code, headers=headers)


def _is_chat(body: bytes) -> bool:
    """Which of the two bodies this is; raises `Invalid` when it is neither."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise Invalid(f"The body is not JSON: {error}.") from error
    except RecursionError:
        raise Invalid("The body is nested too deeply.") from None
    if not isinstance(fields, dict):
        raise Invalid("The body must be a JSON object.")
    if ("messages" in fields) == ("prompt" in fields):
        mistake = Mistake(path="messages", message="give either messages (chat) or prompt (text)")
        raise Invalid("The body must be that of /v1/chat/completions or /v1/completions.", [mistake])
    if fields.get("stream"):
        mistake = Mistake(path="stream", message="is not possible here; use /v1 to stream, or leave it out")
        raise Invalid("A request that is fetched later cannot stream.", [mistake])
    return "messages" in fields


def _on_gateway(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the gateway's loop and wait for it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, runtime.current().loop)
    try:
        return future.result(GATEWAY_TIMEOUT_S)
    except ApiError as error:
        raise GatewayRefused(error) from error
    except TimeoutError as error:
        future.cancel()
        raise Unavailable("The gateway did not answer in time.") from error
