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
