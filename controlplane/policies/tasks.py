"""Keeping Redis's policy equal to Postgres's."""

from __future__ import annotations

from celery import shared_task
from django.conf import settings

from controlplane.policies import announcing


@shared_task(name="policies.reconcile_announcement")
def reconcile_announcement() -> bool:
    """Announce the live policy again when the two differ; whether they did."""
    return announcing.reconcile(settings.TIDEGATE.pool)
