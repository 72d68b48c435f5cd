"""The fleet over REST."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.permissions import MayOperate
from controlplane.fleet import selectors, services


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


class OrderSerializer(serializers.Serializer):
    id = serializers.CharField()
    draining = serializers.BooleanField(help_text="What was ordered; the worker obeys within a second.")


class DrainView(APIView):
    permission_classes = [MayOperate]

    @extend_schema(operation_id="worker_drain", request=None, responses={202: OrderSerializer})
    def post(self, request: Request, worker: str) -> Response:
        """Take a worker out: it takes no new request, those it runs end there. Holds for a day, or until DELETE."""
        services.drain(pool=settings.TIDEGATE.pool, worker=worker, actor=request.user.get_username())
        return _ordered(worker, draining=True)

    @extend_schema(operation_id="worker_resume", request=None, responses={202: OrderSerializer})
    def delete(self, request: Request, worker: str) -> Response:
        """Let a worker take requests again."""
        services.resume(pool=settings.TIDEGATE.pool, worker=worker, actor=request.user.get_username())
        return _ordered(worker, draining=False)


def _ordered(worker: str, *, draining: bool) -> Response:
    body = OrderSerializer({"id": worker, "draining": draining}).data
    return Response(body, status=status.HTTP_202_ACCEPTED)
