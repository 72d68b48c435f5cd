"""Periodic work on roll-ups."""

from __future__ import annotations

from datetime import UTC, datetime

from celery import shared_task

from controlplane.telemetry import services


@shared_task(name="telemetry.roll_up")
def roll_up() -> int:
    """Merge finished intervals into coarser ones; returns how many rows were made."""
    return services.roll_up(datetime.now(UTC))


@shared_task(name="telemetry.forget_old")
def forget_old() -> int:
    """Delete what is past its time; returns how many rows went."""
    return services.forget_old(datetime.now(UTC))
