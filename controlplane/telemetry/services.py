"""Writing roll-ups. Everything may be repeated: what is stored already stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from django.db import connection, transaction

from controlplane.telemetry import sketch
from controlplane.telemetry.buckets import ClassRollup, Rollup
from controlplane.telemetry.models import ClassColor, FleetRollup, LatencyRollup, Resolution

NUM_COLORS: Final = 6
SETTLED_AFTER: Final = timedelta(seconds=90)
"""Intervals are merged so long after their end: by then every finer one has been stored."""
KEPT: Final = {
    Resolution.FINE: timedelta(hours=7),
    Resolution.MIDDLE: timedelta(days=8),
    Resolution.COARSE: timedelta(days=31),
}
POINT_LATENCIES: Final = ("at", "ttft", "tpot", "tokens_per_s")
SUMS: Final = (
    "num_ended",
    "num_late",
    "num_ttft_late",
    "num_tpot_late",
    "num_tokens",
    "num_refused",
)

Group = tuple[datetime, str, str, str]
"""The start of the coarser interval, pool, class and objectives."""


def store(pool: str, rollups: Iterable[Rollup]) -> None:
    """Store closed intervals."""
    known = list(rollups)
    with transaction.atomic():
        LatencyRollup.objects.bulk_create(
            (_row(pool, one, row) for one in known for row in one.classes), ignore_conflicts=True
        )
        FleetRollup.objects.bulk_create((_fleet_row(pool, one) for one in known), ignore_conflicts=True)


def _row(pool: str, one: Rollup, row: ClassRollup) -> LatencyRollup:
    counts = row.counts
    return LatencyRollup(
        pool=pool,
        class_id=row.class_id,
        objectives=row.objectives,
        started_at=datetime.fromtimestamp(one.started_at, UTC),
        resolution_s=Resolution.FINE,
        num_ended=counts.num,
        num_late=counts.num_late,
        num_ttft_late=counts.num_ttft_late,
        num_tpot_late=counts.num_tpot_late,
        num_tokens=row.num_tokens,
        num_refused=row.num_refused,
        ttft=sketch.to_json(row.ttft),
        tpot=sketch.to_json(row.tpot),
    )


def _fleet_row(pool: str, one: Rollup) -> FleetRollup:
    figures: dict[str, Any] = msgspec.to_builtins(one.point)
    kept = {name: value for name, value in figures.items() if name not in POINT_LATENCIES}
    return FleetRollup(pool=pool, started_at=datetime.fromtimestamp(one.started_at, UTC), figures=kept)


def colors(pool: str, class_ids: Sequence[str]) -> dict[str, int]:
    """Each class's permanent colour; new classes get the next one, and after the last the first."""
    with transaction.atomic():
        # Two processes that meet a new class at once must not both take the next colour.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"class-colors:{pool}"])
        known = dict(ClassColor.objects.filter(pool=pool).values_list("class_id", "color"))
        for class_id in class_ids:
            if class_id not in known:
                known[class_id] = len(known) % NUM_COLORS
                ClassColor.objects.create(pool=pool, class_id=class_id, color=known[class_id])
    return {class_id: known[class_id] for class_id in class_ids}


def roll_up(now: datetime) -> int:
    """Merge finished intervals into coarser ones; returns how many rows were made."""
    return _merge_all(Resolution.FINE, Resolution.MIDDLE, now) + _merge_all(
        Resolution.MIDDLE, Resolution.COARSE, now
    )


def _merge_all(fine: Resolution, coarse: Resolution, now: datetime) -> int:
    rows = LatencyRollup.objects.filter(resolution_s=fine, started_at__lt=_start(now - SETTLED_AFTER, coarse))
    newest = LatencyRollup.objects.filter(resolution_s=coarse).order_by("-started_at").first()
    if newest is not None:
        rows = rows.filter(started_at__gte=newest.started_at)
    groups: dict[Group, list[LatencyRollup]] = {}
    for row in rows.order_by("started_at"):
        key = (_start(row.started_at, coarse), row.pool, row.class_id, row.objectives)
        groups.setdefault(key, []).append(row)
    merged = [_merged(key, group, coarse) for key, group in groups.items()]
    LatencyRollup.objects.bulk_create(merged, ignore_conflicts=True)
    return len(merged)


def _start(at: datetime, resolution: Resolution) -> datetime:
    """The start of the interval that an instant lies in."""
    return datetime.fromtimestamp(at.timestamp() // resolution * resolution, UTC)


def _merged(key: Group, group: list[LatencyRollup], coarse: Resolution) -> LatencyRollup:
    started_at, pool, class_id, objectives = key
    sums = {name: sum(getattr(row, name) for row in group) for name in SUMS}
    return LatencyRollup(
        pool=pool,
        class_id=class_id,
        objectives=objectives,
        started_at=started_at,
        resolution_s=coarse,
        ttft=sketch.to_json(sketch.merge(sketch.from_json(row.ttft) for row in group)),
        tpot=sketch.to_json(sketch.merge(sketch.from_json(row.tpot) for row in group)),
        **sums,
    )


def forget_old(now: datetime) -> int:
    """Delete what is past its time, after it was merged; returns how many rows went."""
    roll_up(now)
    num = 0
    for resolution, kept in KEPT.items():
        old = LatencyRollup.objects.filter(resolution_s=resolution, started_at__lt=now - kept)
        num += old.delete()[0]
    return num + FleetRollup.objects.filter(started_at__lt=now - KEPT[Resolution.FINE]).delete()[0]
