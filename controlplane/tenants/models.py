"""Tenants and their API keys. A key's text is never stored: only its hash and its first characters."""

from __future__ import annotations

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


class Retention(models.TextChoices):
    """How long prompts and outputs are kept in Postgres."""

    NONE = "none", "never stored"
    TERMINAL = "terminal", "until the request has ended"
    DAYS = "days", "a number of days after the end"


class Tenant(models.Model):
    """An account: the unit of fairness, quota and retention."""

    slug = models.SlugField(max_length=63, unique=True)
    name = models.CharField(max_length=150)
    weight = models.FloatField(
        default=1.0,
        validators=[MinValueValidator(0.001), MaxValueValidator(1_000_000)],
        help_text="Share of service among the tenants of a class.",
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    retention = models.CharField(max_length=8, choices=Retention, default=Retention.TERMINAL)
    retention_days = models.PositiveIntegerField(default=30, help_text="Used with retention by days.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["slug"]
        constraints = [
            models.CheckConstraint(condition=models.Q(weight__gt=0), name="tenant_weight_is_positive"),
            models.CheckConstraint(
                condition=models.Q(retention__in=Retention.values), name="tenant_retention_known"
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class ApiKey(models.Model):
    """A key of a tenant. `digest` is the SHA-256 of its text, in hex; by `prefix` people tell keys apart."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=150)
    prefix = models.CharField(max_length=12, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    default_class = models.CharField(
        max_length=32,
        blank=True,
        help_text="Class of requests that name none. Empty: the policy's default class.",
    )
    allowed_classes = ArrayField(
        models.CharField(max_length=32),
        default=list,
        blank=True,
        help_text="Further classes that a request may name.",
    )
    operator = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.prefix}… ({self.name})"
