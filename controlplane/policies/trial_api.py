"""Trying a draft on recorded traffic, over REST."""

from __future__ import annotations

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.pagination import newest_first
from controlplane.common.permissions import IsOperator, MayPublish
from controlplane.common.serializers import Strict
from controlplane.policies import selectors, trials
from controlplane.policies.api import CURSOR, DocumentField
from controlplane.policies.models import Trial

LONGEST_WINDOW_S = 365 * 86_400
CANNOT = "Your account may read policies but not try drafts; it lacks the permission “publish_policy”."


class MayTry(MayPublish):
    """Replaying takes a processor for a while: the same right as for publishing."""

    message = CANNOT


class StartSerializer(Strict):
    document = DocumentField()
    window_s = serializers.IntegerField(
        min_value=1,
        max_value=LONGEST_WINDOW_S,
        allow_null=True,
        default=None,
        help_text="How far back the traffic goes; null: as far as there is any.",
    )


class MeasuredSerializer(serializers.Serializer):
    num = serializers.IntegerField()
    num_refused = serializers.IntegerField()
    within = serializers.FloatField(
        allow_null=True, help_text="Share of the accepted that met both objectives; null where none was."
    )
    ttft_p50_s = serializers.FloatField(allow_null=True)
    ttft_p99_s = serializers.FloatField(allow_null=True)


class SimulatedSerializer(MeasuredSerializer):
    target = serializers.FloatField()
    ttft_objective_s = serializers.FloatField()
    tpot_objective_s = serializers.FloatField()
    token_share = serializers.FloatField(allow_null=True, help_text="Of all prompt and output tokens.")
    longest_wait_s = serializers.FloatField(allow_null=True, help_text="For the first step.")


class TrialClassSerializer(serializers.Serializer):
    class_id = serializers.CharField()
    measured = MeasuredSerializer(allow_null=True, help_text="What gateways saw of the same requests then.")
    active = SimulatedSerializer(allow_null=True, help_text="Null for a class that the draft adds.")
    draft = SimulatedSerializer(allow_null=True, help_text="Null for a class that the draft retires.")


class EffectSerializer(serializers.Serializer):
    kind = serializers.ChoiceField(["better", "worse", "same"])
    class_id = serializers.CharField()
    text = serializers.CharField()


class TrialVerdictSerializer(serializers.Serializer):
    headline = serializers.CharField()
    effects = EffectSerializer(many=True)


class ResultSerializer(serializers.Serializer):
    from_at = serializers.FloatField(help_text="Seconds since the epoch: the first arrival replayed.")
    to_at = serializers.FloatField()
    num_requests = serializers.IntegerField()
    num_refused = serializers.IntegerField(help_text="Of them, refused when they came.")
    num_guessed = serializers.IntegerField(help_text="Of them, with an answer's length drawn from their class's.")
    num_cached = serializers.IntegerField(help_text="Of them, with a prompt begun in a cache; replayed without.")
    is_cut = serializers.BooleanField(help_text="There was more; the newest were taken.")
    num_workers = serializers.IntegerField()
    num_slots = serializers.IntegerField()
    num_kv_tokens = serializers.IntegerField()
    took_s = serializers.FloatField()
    classes = TrialClassSerializer(many=True)
    verdict = TrialVerdictSerializer()


class TrialSummarySerializer(serializers.ModelSerializer):
    class Meta:
        model = Trial
        fields = [
            "id", "author", "base_version", "window_s", "state", "created_at", "finished_at",
            "num_done", "num_total", "problem",
        ]  # fmt: skip


class TrialSerializer(TrialSummarySerializer):
    document = DocumentField()
    result = ResultSerializer(allow_null=True)

    class Meta(TrialSummarySerializer.Meta):
        fields = [*TrialSummarySerializer.Meta.fields, "document", "result"]


class TrialPageSerializer(serializers.Serializer):
    results = TrialSummarySerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="The cursor of the next page; null at the end.")


class WindowSerializer(serializers.Serializer):
    window_s = serializers.IntegerField(allow_null=True, help_text="Null: as far as there is traffic.")
    num_requests = serializers.IntegerField(help_text="At most `max_requests`.")


class TrafficSerializer(serializers.Serializer):
    windows = WindowSerializer(many=True)
    max_requests = serializers.IntegerField(help_text="A trial takes the newest so many.")
    num_workers = serializers.IntegerField(help_text="Live workers that have published what a step costs.")


class TrafficView(APIView):
    @extend_schema(operation_id="policy_traffic", responses=TrafficSerializer)
    def get(self, request: Request) -> Response:
        """What traffic is recorded to try a draft on, and on how many workers it would be replayed."""
        found = trials.available(settings.TIDEGATE.pool)
        body = {
            "windows": [{"window_s": window_s, "num_requests": num} for window_s, num in found.windows],
            "max_requests": trials.MAX_REQUESTS,
            "num_workers": found.num_workers,
        }
        return Response(TrafficSerializer(body).data)


class TrialsView(APIView):
    def get_permissions(self) -> list[IsOperator]:
        return [MayTry() if self.request.method == "POST" else IsOperator()]

    @extend_schema(operation_id="trial_list", parameters=[CURSOR], responses=TrialPageSerializer)
    def get(self, request: Request) -> Response:
        """All trials of the last 90 days, newest first, without their documents and results."""
        rows = selectors.trials(settings.TIDEGATE.pool).defer("document", "result")
        return Response(TrialPageSerializer(newest_first(rows, "id", request)).data)

    @extend_schema(operation_id="trial_start", request=StartSerializer, responses={201: TrialSerializer})
    def post(self, request: Request) -> Response:
        """Replay recorded traffic under the live policy and under this draft. Nothing reaches a worker.

        400 lists the draft's mistakes; 409 where there is no traffic or no worker to replay it on. Follow the trial
        by reading it; the caller's earlier one, if it still runs, is cancelled.
        """
        body = StartSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        trial = trials.start(
            pool=settings.TIDEGATE.pool,
            document=body.validated_data["document"],
            window_s=body.validated_data["window_s"],
            author=request.user.get_username(),
        )
        return Response(TrialSerializer(trial).data, status=status.HTTP_201_CREATED)


TRIAL_ID = OpenApiParameter("trial", int, OpenApiParameter.PATH)


class TrialView(APIView):
    def get_permissions(self) -> list[IsOperator]:
        return [MayTry() if self.request.method == "DELETE" else IsOperator()]

    @extend_schema(operation_id="trial_read", parameters=[TRIAL_ID], responses=TrialSerializer)
    def get(self, request: Request, trial: int) -> Response:
        """One trial: how far it is, then its result."""
        found = selectors.trial_of(settings.TIDEGATE.pool, trial)
        return Response(TrialSerializer(trials.give_up_if_lost(found)).data)

    @extend_schema(operation_id="trial_cancel", parameters=[TRIAL_ID], responses={200: TrialSerializer})
    def delete(self, request: Request, trial: int) -> Response:
        """Stop it. One that has ended stays as it is."""
        found = selectors.trial_of(settings.TIDEGATE.pool, trial)
        ended = trials.cancel(trial=found, actor=request.user.get_username())
        return Response(TrialSerializer(ended).data)
