"""The policy of this installation's pool over REST."""

from __future__ import annotations

import re
from typing import Any, Final

from django.conf import settings
from django.utils.http import parse_etags
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.errors import Invalid, Mistake, PreconditionRequired
from controlplane.common.pagination import newest_first
from controlplane.common.permissions import IsOperator, MayPublish
from controlplane.common.serializers import Strict
from controlplane.policies import selectors, services
from controlplane.policies.models import PolicyVersion
from controlplane.policies.openapi import POLICY_REF

ENTITY_TAG: Final = re.compile(r'^(?:W/)?"v(\d{1,9})"$')


@extend_schema_field(POLICY_REF)
class DocumentField(serializers.DictField):
    """A policy document; the core checks it."""


class VersionSerializer(serializers.ModelSerializer):
    document = DocumentField()

    class Meta:
        model = PolicyVersion
        fields = ["version", "document", "comment", "author", "published_at", "rolled_back_to", "state"]


class VersionPageSerializer(serializers.Serializer):
    results = VersionSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null at the end.")


class ValidateSerializer(Strict):
    document = DocumentField()


class ValidSerializer(serializers.Serializer):
    valid = serializers.BooleanField()


class PublishSerializer(Strict):
    document = DocumentField()
    comment = serializers.CharField(allow_blank=True, max_length=2000, default="")


class RollBackSerializer(Strict):
    comment = serializers.CharField(allow_blank=True, max_length=2000, default="")


IF_MATCH = OpenApiParameter(
    "If-Match", OpenApiTypes.STR, OpenApiParameter.HEADER, required=True,
    description='The version that the document was made from, as in "v41"; 412 when another is live by now. '
    "* publishes whatever is live.",
)  # fmt: skip
CURSOR = OpenApiParameter("cursor", OpenApiTypes.STR, description="`next` of the page before.")
ENTITY_TAG_HEADER = OpenApiParameter(
    "ETag", OpenApiTypes.STR, OpenApiParameter.HEADER, response=[200, 201], description='As in "v41".'
)


IF_NONE_MATCH = OpenApiParameter(
    "If-None-Match", OpenApiTypes.STR, OpenApiParameter.HEADER,
    description="The ETag of the version that the caller has; 304 without a body while it is live.",
)  # fmt: skip


class ActivePolicyView(APIView):
    @extend_schema(
        operation_id="policy_active",
        parameters=[IF_NONE_MATCH, ENTITY_TAG_HEADER],
        responses={200: VersionSerializer, 304: OpenApiResponse(description="The caller has it.")},
    )
    def get(self, request: Request) -> Response:
        """The live policy."""
        version = selectors.active(settings.TIDEGATE.pool)
        if _is_known(request, version):
            return Response(status=status.HTTP_304_NOT_MODIFIED, headers={"ETag": _entity_tag(version)})
        return _answer(version)


class PolicySchemaView(APIView):
    @extend_schema(operation_id="policy_schema", responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """The JSON Schema of a policy document: titles, descriptions, bounds and defaults of every field."""
        return Response(selectors.schema())


class ValidatePolicyView(APIView):
    @extend_schema(operation_id="policy_validate", request=ValidateSerializer, responses=ValidSerializer)
    def post(self, request: Request) -> Response:
        """Check a document without publishing it; 400 lists every mistake with its path."""
        body = _read(ValidateSerializer, request)
        services.validate(pool=settings.TIDEGATE.pool, document=body["document"])
        return Response({"valid": True})


class PoliciesView(APIView):
    def get_permissions(self) -> list[IsOperator]:
        return [MayPublish() if self.request.method == "POST" else IsOperator()]

    @extend_schema(operation_id="policy_list", parameters=[CURSOR], responses=VersionPageSerializer)
    def get(self, request: Request) -> Response:
        """All versions, newest first."""
        page = newest_first(selectors.versions(settings.TIDEGATE.pool), "version", request)
        return Response(VersionPageSerializer(page).data)

    @extend_schema(
        operation_id="policy_publish",
        parameters=[IF_MATCH, ENTITY_TAG_HEADER],
        request=PublishSerializer,
        responses={201: VersionSerializer},
    )
    def post(self, request: Request) -> Response:
        """Publish a document: a new version, live within a second."""
        body = _read(PublishSerializer, request)
        version = services.publish(
            pool=settings.TIDEGATE.pool,
            document=body["document"],
            comment=body["comment"],
            author=request.user.get_username(),
            based_on=_based_on(request),
        )
        return _answer(version, status.HTTP_201_CREATED)


class PolicyView(APIView):
    @extend_schema(operation_id="policy_read", parameters=[ENTITY_TAG_HEADER], responses=VersionSerializer)
    def get(self, request: Request, version: int) -> Response:
        """One version."""
        return _answer(selectors.version_of(settings.TIDEGATE.pool, version))


class RollBackView(APIView):
    permission_classes = [MayPublish]

    @extend_schema(
        operation_id="policy_roll_back",
        parameters=[ENTITY_TAG_HEADER],
        request=RollBackSerializer,
        responses={201: VersionSerializer},
    )
    def post(self, request: Request, version: int) -> Response:
        """Publish an older version's document again, as a new version."""
        body = _read(RollBackSerializer, request)
        new = services.roll_back(
            pool=settings.TIDEGATE.pool,
            version=version,
            comment=body["comment"],
            author=request.user.get_username(),
        )
        return _answer(new, status.HTTP_201_CREATED)


def _read(serializer: type[Strict], request: Request) -> dict[str, Any]:
    body = serializer(data=request.data)
    body.is_valid(raise_exception=True)
    validated: dict[str, Any] = body.validated_data
    return validated


def _answer(version: PolicyVersion, status_code: int = status.HTTP_200_OK) -> Response:
    headers = {"ETag": _entity_tag(version)}
    return Response(VersionSerializer(version).data, status=status_code, headers=headers)


def _entity_tag(version: PolicyVersion) -> str:
    return f'"v{version.version}"'


def _is_known(request: Request, version: PolicyVersion) -> bool:
    """Whether If-None-Match names the version; compared weakly, as HTTP wants it."""
    tags = parse_etags(request.headers.get("If-None-Match", ""))
    return "*" in tags or _entity_tag(version) in (tag.removeprefix("W/") for tag in tags)


def _based_on(request: Request) -> int | None:
    """The version named by If-Match; None for `*`."""
    header = request.headers.get("If-Match", "").strip()
    if not header:
        raise PreconditionRequired(
            'Say which version you worked on: If-Match: "v41" (the ETag of the active policy).'
        )
    if header == "*":
        return None
    if match := ENTITY_TAG.match(header):
        return int(match[1])
    mistake = Mistake(path="If-Match", message=f'is {header}; write a version as in "v41", or *')
    raise Invalid("The header If-Match cannot be read.", [mistake])
