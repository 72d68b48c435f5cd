"""Keys for the operators' playground."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.policies.selectors import active_policy
from controlplane.tenants import services


class PlaygroundKeySerializer(serializers.Serializer):
    key = serializers.CharField(help_text="Shown this once.")
    classes = serializers.ListField(child=serializers.CharField(), help_text="Most urgent first.")
    default_class = serializers.CharField()
    expires_at = serializers.DateTimeField()


class PlaygroundKeyView(APIView):
    @extend_schema(
        operation_id="playground_key_create", request=None, responses={201: PlaygroundKeySerializer}
    )
    def post(self, request: Request) -> Response:
        """A key of the signed-in operator, good for every class, for some hours."""
        policy = active_policy(settings.TIDEGATE.pool)
        classes = [one.id for one in sorted(policy.classes, key=lambda one: one.rank)]
        new = services.create_playground_key(operator=request.user, classes=classes)
        body = {
            "key": new.token,
            "classes": classes,
            "default_class": policy.default_class or policy.least_urgent().id,
            "expires_at": new.key.expires_at,
        }
        return Response(PlaygroundKeySerializer(body).data, status=status.HTTP_201_CREATED)
