"""A pool's policy as a row of immutable versions. The database refuses to change or delete one."""

from __future__ import annotations

from django.db import models


class Pool(models.Model):
    """A model and its workers. Its row is the lock that puts concurrent publishes in order."""

    name = models.SlugField(max_length=63, primary_key=True)
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name


class VersionState(models.TextChoices):
    """At most one version of a pool is live."""

    LIVE = "live", "live"
    SUPERSEDED = "superseded", "superseded"


class PolicyVersion(models.Model):
    """One published document. Everything but `state` is fixed for ever."""

    pool = models.ForeignKey(Pool, on_delete=models.PROTECT, related_name="versions")
    version = models.PositiveIntegerField()
    document = models.JSONField()
    comment = models.TextField(blank=True)
    author = models.CharField(max_length=150)
    published_at = models.DateTimeField()
    rolled_back_to = models.PositiveIntegerField(
        null=True, blank=True, help_text="The version whose document this one took up again."
    )
    state = models.CharField(max_length=16, choices=VersionState)

    class Meta:
        ordering = ["-version"]
        permissions = [("publish_policy", "Can publish and roll back policies")]
        constraints = [
            models.UniqueConstraint(fields=["pool", "version"], name="policy_version_once_per_pool"),
            models.UniqueConstraint(
                fields=["pool"], condition=models.Q(state="live"), name="policy_one_live_version_per_pool"
            ),
            models.CheckConstraint(condition=models.Q(version__gte=1), name="policy_version_from_1"),
            models.CheckConstraint(
                condition=models.Q(state__in=VersionState.values), name="policy_state_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pool_id} v{self.version}"


class TrialState(models.TextChoices):
    """How far a draft's trial on recorded traffic is."""

    QUEUED = "queued", "queued"
    RUNNING = "running", "running"
    DONE = "done", "done"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"


OPEN_TRIAL_STATES = (TrialState.QUEUED, TrialState.RUNNING)


class Trial(models.Model):
    """A draft on recorded traffic, beside the version that was live: what was asked, and what came of it.

    `document` is the draft as it was then. `result` has the shape of `trial_api.ResultSerializer`.
    """

    pool = models.CharField(max_length=63)
    author = models.CharField(max_length=150)
    base_version = models.PositiveIntegerField(help_text="The version that was live, and is compared with.")
    document = models.JSONField()
    window_s = models.PositiveIntegerField(null=True, help_text="How far back; empty: as far as there is traffic.")
    state = models.CharField(max_length=10, choices=TrialState, default=TrialState.QUEUED)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    heard_at = models.DateTimeField(null=True, help_text="When whoever runs it last said how far it is.")
    finished_at = models.DateTimeField(null=True)
    num_done = models.PositiveIntegerField(default=0)
    num_total = models.PositiveIntegerField(default=0)
    problem = models.TextField(blank=True, help_text="Why there is no result.")
    result = models.JSONField(null=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.CheckConstraint(condition=models.Q(state__in=TrialState.values), name="trial_state_known"),
        ]
        indexes = [models.Index(fields=["pool", "-id"], name="trial_newest")]

    def __str__(self) -> str:
        return f"{self.pool} trial {self.pk}"
