"""Reading roll-ups."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import groupby
from statistics import fmean
from typing import Any, Final

from django.db.models import Max, Min, Q, Sum

from controlplane.telemetry import sketch
from controlplane.telemetry.buckets import POINT_S, ClassRollup, Judged, Rollup
from controlplane.telemetry.models import FleetRollup, LatencyRollup, Resolution
from controlplane.telemetry.promise import Counts, Ended
from controlplane.telemetry.schema import Percentiles, Point

BUDGET: Final = timedelta(days=30)


def rollups(pool: str, since: float) -> list[Rollup]:
    """The stored ten-second intervals of a pool that began at `since` or later, oldest first."""
    start = datetime.fromtimestamp(since, UTC)
    # Both tables are written in one transaction. Read in this order, an interval never lacks its classes.
    fleet = FleetRollup.objects.filter(pool=pool, started_at__gte=start).values_list("started_at", "figures")
    figures = dict(fleet.order_by("started_at"))
    rows = LatencyRollup.objects.filter(pool=pool, resolution_s=Resolution.FINE, started_at__gte=start)
    classes: dict[datetime, list[LatencyRollup]] = {}
    for row in rows.order_by("class_id", "objectives"):
        classes.setdefault(row.started_at, []).append(row)
    return [_rollup(at, classes.get(at, []), known) for at, known in figures.items()]


def _rollup(started_at: datetime, rows: list[LatencyRollup], figures: dict[str, Any]) -> Rollup:
    classes = tuple(_class_rollup(row) for row in rows)
    end = started_at.timestamp() + POINT_S
    point = _point(end, _by_class(classes), figures, POINT_S)
    return Rollup(started_at=started_at.timestamp(), classes=classes, point=point)


def _class_rollup(row: LatencyRollup) -> ClassRollup:
    return ClassRollup(
        class_id=row.class_id,
        objectives=row.objectives,
        counts=Counts(
            num=row.num_ended,
            num_late=row.num_late,
            num_ttft_late=row.num_ttft_late,
            num_tpot_late=row.num_tpot_late,
        ),
        ttft=sketch.from_json(row.ttft),
        tpot=sketch.from_json(row.tpot),
        num_tokens=row.num_tokens,
        num_refused=row.num_refused,
    )


def _point(end: float, classes: Iterable[ClassRollup], figures: dict[str, Any], length_s: float) -> Point:
    known = list(classes)
    return Point(
        at=end,
        ttft=_percentiles((one.class_id, one.ttft) for one in known),
        tpot=_percentiles((one.class_id, one.tpot) for one in known),
        tokens_per_s={one.class_id: one.num_tokens / length_s for one in known},
        waiting=figures.get("waiting", {}),
        step_p50_s=figures.get("step_p50_s"),
        step_p99_s=figures.get("step_p99_s"),
        batch_limit=figures.get("batch_limit"),
        num_running=figures.get("num_running"),
        kv_share=figures.get("kv_share", {}),
        busy=figures.get("busy", {}),
    )


def _percentiles(sketches: Iterable[tuple[str, sketch.Sketch]]) -> dict[str, Percentiles]:
    return {class_id: sketch.sketch_percentiles(one) for class_id, one in sketches if one}


def points(pool: str, since: float, length_s: float) -> list[Point]:
    """The chart's points since an instant, of `length_s` each (a multiple of ten seconds)."""
    stored = rollups(pool, since)
    if length_s == POINT_S:
        return [one.point for one in stored]
    groups = groupby(stored, key=lambda one: one.started_at // length_s * length_s)
    return [_merged_point(start + length_s, list(group), length_s) for start, group in groups]


def _merged_point(end: float, group: list[Rollup], length_s: float) -> Point:
    classes = _by_class(row for one in group for row in one.classes)
    return _point(end, classes, _merged_figures([one.point for one in group]), length_s)


def _by_class(rows: Iterable[ClassRollup]) -> list[ClassRollup]:
    """One row for each class, whatever it was judged by."""
    by_class: dict[str, list[ClassRollup]] = {}
    for row in rows:
        by_class.setdefault(row.class_id, []).append(row)
    return [_merged_class(class_id, rows) for class_id, rows in sorted(by_class.items())]


def _merged_class(class_id: str, rows: list[ClassRollup]) -> ClassRollup:
    return ClassRollup(
        class_id=class_id,
        objectives="",
        ttft=sketch.merge(row.ttft for row in rows),
        tpot=sketch.merge(row.tpot for row in rows),
        num_tokens=sum(row.num_tokens for row in rows),
    )


def _merged_figures(many: list[Point]) -> dict[str, Any]:
    """Means of what is a level; the worst step time."""
    return {
        "waiting": {name: round(mean) for name, mean in _means(one.waiting for one in many).items()},
        "step_p50_s": _mean(one.step_p50_s for one in many),
        "step_p99_s": max((one.step_p99_s for one in many if one.step_p99_s is not None), default=None),
        "batch_limit": _mean(one.batch_limit for one in many),
        "num_running": _mean(one.num_running for one in many),
        "kv_share": _means(one.kv_share for one in many),
        "busy": _means(one.busy for one in many),
    }


def _mean(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return fmean(known) if known else None


def _means(maps: Iterable[dict[str, float] | dict[str, int]]) -> dict[str, float]:
    known = list(maps)
    names = sorted({name for one in known for name in one})
    return {name: fmean(one[name] for one in known if name in one) for name in names}


def ended_in_budget(pool: str, now: float) -> tuple[dict[Judged, Ended], float]:
    """Requests of the last 30 days and the late ones, by class and the objectives that they were judged by; and
    the instant up to which they are counted.

    Each stretch of time is read at the coarsest resolution that has it.
    """
    since = datetime.fromtimestamp(now, UTC) - BUDGET
    parts, through = Q(), since
    for resolution in (Resolution.COARSE, Resolution.MIDDLE, Resolution.FINE):
        part = Q(resolution_s=resolution, started_at__gte=through)
        newest = LatencyRollup.objects.filter(part, pool=pool).aggregate(newest=Max("started_at"))["newest"]
        if newest is not None:
            parts |= part
            through = newest + timedelta(seconds=int(resolution))
    if not parts:
        return {}, since.timestamp()
    rows = LatencyRollup.objects.filter(parts, pool=pool, num_ended__gt=0)
    keyed = rows.values_list("class_id", "objectives")
    sums = keyed.annotate(ended=Sum("num_ended"), late=Sum("num_late"), since=Min("started_at")).order_by()
    begins = _begins(pool, since)
    counts = {
        (name, judged): Ended(num, late, begins.get((name, judged), at).timestamp())
        for name, judged, num, late, at in sums
    }
    return counts, through.timestamp()


def _begins(pool: str, since: datetime) -> dict[Judged, datetime]:
    """When what was judged began, as exactly as it is still known: a merged interval begins before its requests."""
    rows = LatencyRollup.objects.filter(pool=pool, num_ended__gt=0, started_at__gte=since)
    firsts = rows.values_list("class_id", "objectives", "resolution_s").annotate(Min("started_at")).order_by()
    begins: dict[Judged, datetime] = {}
    for name, judged, length_s, at in sorted(firsts, key=lambda row: -row[2]):
        known = begins.setdefault((name, judged), at)
        if at < known or at - known < timedelta(seconds=_length_before(length_s)):
            begins[name, judged] = at
    return begins


def _length_before(length_s: int) -> int:
    """The length of the intervals into which those of `length_s` are merged."""
    return min((int(one) for one in Resolution if one > length_s), default=length_s)
