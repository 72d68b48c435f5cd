"""What is kept of telemetry: latencies by class, the fleet's figures, and each class's colour."""

from __future__ import annotations

from django.db import models


class Resolution(models.IntegerChoices):
    """The length of an interval in seconds. Finer ones are merged into coarser ones and then forgotten."""

    FINE = 10, "10 seconds"
    MIDDLE = 300, "5 minutes"
    COARSE = 3600, "1 hour"


class LatencyRollup(models.Model):
    """One class over one interval, as judged by one set of objectives (empty: by ones that were not recorded).

    `ttft` and `tpot` are sketches: number of samples by bucket (see `sketch.py`).
    """

    pool = models.CharField(max_length=63)
    class_id = models.CharField(max_length=32)
    objectives = models.CharField(max_length=96, default="", help_text="By what its requests were judged.")
    started_at = models.DateTimeField()
    resolution_s = models.PositiveSmallIntegerField(choices=Resolution)
    num_ended = models.PositiveIntegerField(default=0)
    num_late = models.PositiveIntegerField(default=0)
    num_ttft_late = models.PositiveIntegerField(default=0)
    num_tpot_late = models.PositiveIntegerField(default=0)
    num_tokens = models.PositiveBigIntegerField(default=0)
    num_refused = models.PositiveIntegerField(default=0)
    ttft = models.JSONField(default=dict)
    tpot = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["pool", "resolution_s", "started_at", "class_id", "objectives"],
                name="latency_rollup_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.pool} {self.class_id} {self.started_at:%F %T} ({self.resolution_s} s)"


class FleetRollup(models.Model):
    """The fleet over ten seconds: the figures of `schema.Point` that belong to no request."""

    pool = models.CharField(max_length=63)
    started_at = models.DateTimeField()
    figures = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pool", "started_at"], name="fleet_rollup_once")]

    def __str__(self) -> str:
        return f"{self.pool} {self.started_at:%F %T}"


class ClassColor(models.Model):
    """The colour of a class: assigned once, kept for life."""

    pool = models.CharField(max_length=63)
    class_id = models.CharField(max_length=32)
    color = models.PositiveSmallIntegerField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pool", "class_id"], name="class_color_once")]

    def __str__(self) -> str:
        return f"{self.pool} {self.class_id}: {self.color}"
