"""The charts' past over REST."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.telemetry import folder, selectors
from controlplane.telemetry.buckets import POINT_S
from controlplane.telemetry.schema import ClassLive, Point


@dataclass(frozen=True, slots=True)
class Range:
    """How far back a chart goes, and how long each of its points is."""

    length_s: float
    point_s: float


RANGES: Final = {
    "15m": Range(length_s=900, point_s=10),
    "1h": Range(length_s=3600, point_s=10),
    "6h": Range(length_s=21_600, point_s=60),
}


LATEST_INSTANT: Final = 4_102_444_800  # the year 2100


class HistoryQuery(serializers.Serializer):
    range = serializers.ChoiceField(list(RANGES), default="15m", help_text="How far back.")
    until = serializers.FloatField(required=False, help_text="Seconds since the epoch; now without it.")

    def validate_until(self, value: float) -> float:
        if 0 <= value <= LATEST_INSTANT:  # refuses NaN too
            return value
        raise serializers.ValidationError(f"must be from 0 to {LATEST_INSTANT}")


class PercentilesSerializer(serializers.Serializer):
    p50 = serializers.FloatField(allow_null=True)
    p95 = serializers.FloatField(allow_null=True)
    p99 = serializers.FloatField(allow_null=True)
    num = serializers.IntegerField()


class PointSerializer(serializers.Serializer):
    """Maps are by class id, `kv_share` and `busy` by worker id; null is "not known"."""

    at = serializers.FloatField(help_text="The end of the interval, in seconds since the epoch.")
    ttft = serializers.DictField(child=PercentilesSerializer())
    tpot = serializers.DictField(child=PercentilesSerializer())
    tokens_per_s = serializers.DictField(child=serializers.FloatField())
    waiting = serializers.DictField(child=serializers.IntegerField())
    step_p50_s = serializers.FloatField(allow_null=True)
    step_p99_s = serializers.FloatField(allow_null=True)
    batch_limit = serializers.FloatField(allow_null=True)
    num_running = serializers.FloatField(allow_null=True)
    kv_share = serializers.DictField(child=serializers.FloatField())
    busy = serializers.DictField(child=serializers.FloatField())


class HistorySerializer(serializers.Serializer):
    point_s = serializers.FloatField(help_text="The length of each interval, in seconds.")
    points = PointSerializer(many=True)


class TenantWaitingSerializer(serializers.Serializer):
    tenant = serializers.CharField()
    num = serializers.IntegerField(help_text="Requests that wait.")
    num_running = serializers.IntegerField()
    oldest_s = serializers.FloatField(help_text="How long the oldest has waited.")
    num_ahead = serializers.IntegerField(allow_null=True, help_text="Requests that go before its oldest.")
    predicted_start_s = serializers.FloatField(allow_null=True, help_text="From now; an estimate.")
    share_got = serializers.FloatField(allow_null=True, help_text="Of the class's tokens in the last minute.")
    share_due = serializers.FloatField(allow_null=True, help_text="By weight, of the tenants that wait or run.")
    reason = serializers.CharField(allow_blank=True, help_text="A code; empty where nothing waits.")
    why = serializers.ListField(child=serializers.CharField(), help_text="Why the oldest waits, in sentences.")


class ClassWaitingSerializer(serializers.Serializer):
    class_id = serializers.CharField()
    num = serializers.IntegerField()
    num_late = serializers.IntegerField(help_text="Past their TTFT objective.")
    oldest_s = serializers.FloatField()
    tenants = TenantWaitingSerializer(many=True, help_text="Who waits longest, then who was served most; a few.")
    num_more = serializers.IntegerField(help_text="Requests of tenants that are not listed.")
    num_more_tenants = serializers.IntegerField()


class WaitingSerializer(serializers.Serializer):
    at = serializers.FloatField(help_text="Seconds since the epoch.")
    workers_at = serializers.FloatField(allow_null=True, help_text="When a worker last said so.")
    classes = ClassWaitingSerializer(many=True)


class WaitingView(APIView):
    @extend_schema(operation_id="telemetry_waiting", responses=WaitingSerializer)
    def get(self, request: Request) -> Response:
        """Who waits now, by class and tenant, and why. No classes while this process has not read the telemetry."""
        running = folder.current()
        if running is None or not running.restored:
            return Response({"at": time.time(), "workers_at": None, "classes": []})
        snapshot = running.fold.snapshot(running.now(), number=0)
        classes = [_class_waiting(one) for one in snapshot.classes]
        return Response({"at": snapshot.at, "workers_at": snapshot.workers_at, "classes": classes})


def _class_waiting(one: ClassLive) -> dict[str, Any]:
    known: dict[str, Any] = msgspec.to_builtins(one.waiting)
    del known["waits_s"]
    return {"class_id": one.id, **known}


class HistoryView(APIView):
    @extend_schema(
        operation_id="telemetry_history",
        parameters=[
            OpenApiParameter("range", enum=list(RANGES), default="15m", description="How far back."),
            OpenApiParameter("until", type=float, description="Seconds since the epoch; now without it."),
        ],
        responses=HistorySerializer,
    )
    def get(self, request: Request) -> Response:
        """Latencies, tokens, steps and memory by interval, oldest first, with gaps where there was none."""
        query = HistoryQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        wanted = RANGES[query.validated_data["range"]]
        points = history(settings.TIDEGATE.pool, wanted, query.validated_data.get("until"))
        body: dict[str, Any] = {"point_s": wanted.point_s, "points": msgspec.to_builtins(points)}
        return Response(body)


def history(pool: str, wanted: Range, until: float | None) -> list[Point]:
    """The stored points, and those that this process holds and that are not stored yet."""
    running = folder.current()
    now = until if until is not None else (running.now() if running else time.time())
    stored = selectors.points(pool, now - wanted.length_s, wanted.point_s)
    known = [point for point in stored if point.at <= now]
    if running is None or wanted.point_s != POINT_S:
        return known
    last = known[-1].at if known else now - wanted.length_s
    return [*known, *(point for point in running.points_after(last) if point.at <= now)]
