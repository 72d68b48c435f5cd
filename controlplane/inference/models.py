"""One row per accepted request, committed before the request is queued."""

from __future__ import annotations

import uuid

from django.db import models


class RequestState(models.TextChoices):
    """Where the record of a request is. How far a request in progress has come is in Redis."""

    ACCEPTED = "accepted", "accepted"
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


TERMINAL_STATES = (RequestState.SUCCEEDED, RequestState.FAILED, RequestState.CANCELLED)


class Endpoint(models.TextChoices):
    """The route that accepted a request. Those of the native API are fetched later."""

    CHAT = "chat.completions", "POST /v1/chat/completions"
    COMPLETIONS = "completions", "POST /v1/completions"
    NATIVE_CHAT = "requests.chat", "POST /api/v1/requests, chat"
    NATIVE_COMPLETIONS = "requests.completions", "POST /api/v1/requests, text"


class InferenceRequest(models.Model):
    """What was asked, what came of it, and how long each part took.

    `prompt`, `output` and `payload` are subject to the tenant's retention. `payload` is the wire message that
    was enqueued: with it a request can be queued again when Redis lost it. A null `output` is not kept; an
    empty one was empty.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    pool = models.CharField(max_length=63)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+", db_index=False)
    api_key = models.ForeignKey("tenants.ApiKey", on_delete=models.PROTECT, related_name="+", db_index=False)
    class_id = models.CharField(max_length=32)
    endpoint = models.CharField(max_length=24, choices=Endpoint)
    model = models.CharField(max_length=200, blank=True)
    gateway = models.CharField(max_length=63)
    stream = models.BooleanField(default=False)
    state = models.CharField(max_length=10, choices=RequestState, default=RequestState.ACCEPTED)

    arrived_at = models.DateTimeField(help_text="On Redis's clock: when the request's headers came in.")
    accepted_at = models.DateTimeField(auto_now_add=True)
    first_token_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    num_prompt_tokens = models.PositiveIntegerField()
    max_tokens = models.PositiveIntegerField()
    num_output_tokens = models.PositiveIntegerField(default=0)
    num_cached_tokens = models.PositiveIntegerField(default=0)

    parameters = models.JSONField(default=dict, help_text="The body without the prompt.")
    prompt = models.JSONField(null=True, help_text="Messages or text, as sent.")
    header = models.BinaryField(null=True)
    payload = models.BinaryField(null=True)
    output = models.TextField(null=True)  # noqa: DJ001 (null and empty differ)
    finish_reason = models.CharField(max_length=16, blank=True)
    error = models.TextField(blank=True)

    ttft_s = models.FloatField(null=True)
    tpot_s = models.FloatField(null=True)
    e2e_s = models.FloatField(null=True)
    queue_s = models.FloatField(null=True)
    formation_s = models.FloatField(null=True)
    prefill_s = models.FloatField(null=True)
    decode_s = models.FloatField(null=True)
    parked_s = models.FloatField(null=True)
    post_s = models.FloatField(null=True)

    worker = models.CharField(max_length=63, blank=True)
    num_attempts = models.PositiveSmallIntegerField(default=0)
    num_preemptions = models.PositiveSmallIntegerField(default=0)
    purge_at = models.DateTimeField(null=True, help_text="When prompt and output are deleted.")

    class Meta:
        ordering = ["-arrived_at", "-id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(state__in=RequestState.values), name="request_state_known"
            ),
        ]
        indexes = [
            models.Index(fields=["-arrived_at", "-id"], name="request_newest"),
            models.Index(fields=["tenant", "-arrived_at"], name="request_by_tenant"),
            models.Index(fields=["accepted_at"], name="request_open", condition=models.Q(state="accepted")),
            models.Index(
                fields=["purge_at"], name="request_to_purge", condition=models.Q(purge_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.state}"

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL_STATES
