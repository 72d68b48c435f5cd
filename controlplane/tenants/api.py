"""Keys for the operators' playground."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.permissions import may_operate
from controlplane.policies.selectors import active_policy
from controlplane.tenants import services
from scheduler_worker.core.policy import Policy


class PlaygroundKeySerializer(serializers.Serializer):
    key = serializers.CharField(help_text="Shown this once.")
    classes = serializers.ListField(child=serializers.CharField(), help_text="Most urgent first.")
    default_class = serializers.CharField()
    expires_at = serializers.DateTimeField()


def _classes_for(request: Request, policy: Policy) -> list[str]:
    """The classes that an operator may try, the most urgent first."""
    most_urgent = 0
    if not may_operate(request.user):
        most_urgent = policy.find(policy.default_class or policy.least_urgent().id).rank
    return [one.id for one in sorted(policy.classes, key=lambda one: one.rank) if one.rank >= most_urgent]


class PlaygroundKeyView(APIView):
    @extend_schema(
        operation_id="playground_key_create", request=None, responses={201: PlaygroundKeySerializer}
    )
    def post(self, request: Request) -> Response:
        """A key of the signed-in operator, for some hours. Who may not change policies may not go before others:
        the key is then good for the default class and less urgent ones."""
        policy = active_policy(settings.TIDEGATE.pool)
        classes = _classes_for(request, policy)
        new = services.create_playground_key(operator=request.user, classes=classes)
        body = {
            "key": new.token,
            "classes": classes,
            "default_class": policy.default_class or policy.least_urgent().id,
            "expires_at": new.key.expires_at,
        }
        return Response(PlaygroundKeySerializer(body).data, status=status.HTTP_201_CREATED)
