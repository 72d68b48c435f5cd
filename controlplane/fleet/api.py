"""The fleet over REST."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.fleet import selectors


class WorkerSerializer(serializers.Serializer):
    """Fields from `policy_version` on are null until the worker has announced itself."""

    id = serializers.CharField()
    state = serializers.ChoiceField(["live", "draining", "silent"])
    lease_ends_at = serializers.FloatField(help_text="Seconds since the epoch, on Redis's clock.")
    policy_version = serializers.IntegerField(source="info.policy_version", default=None, allow_null=True)
    model = serializers.CharField(source="info.model", default=None, allow_null=True)
    started_at = serializers.FloatField(source="info.started_at", default=None, allow_null=True)
    num_slots = serializers.IntegerField(source="info.num_slots", default=None, allow_null=True)
    num_blocks = serializers.IntegerField(source="info.num_blocks", default=None, allow_null=True)
    block_size = serializers.IntegerField(source="info.block_size", default=None, allow_null=True)
    max_model_len = serializers.IntegerField(source="info.max_model_len", default=None, allow_null=True)
    dtype = serializers.CharField(source="info.dtype", default=None, allow_null=True)
    attention_backend = serializers.CharField(source="info.attention_backend", default=None, allow_null=True)


class WorkerListSerializer(serializers.Serializer):
    results = WorkerSerializer(many=True)


class WorkersView(APIView):
    @extend_schema(operation_id="worker_list", responses=WorkerListSerializer)
    def get(self, request: Request) -> Response:
        """The workers that hold a lease or just lost it, with the policy version that each runs."""
        found = selectors.workers(settings.TIDEGATE.pool)
        return Response(WorkerListSerializer({"results": found}).data)
