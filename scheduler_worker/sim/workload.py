"""From a trace to a workload: classes for requests without one, and the load that an operator asks about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from scheduler_worker.sim.trace import Request


def assign_classes(
    requests: Sequence[Request], shares: Sequence[tuple[str, float]], seed: int
) -> list[Request]:
    """Give every request without a class one, drawn by `shares` (class id, weight)."""
    draw = Random(f"classes-{seed}")
    ids = [class_id for class_id, _ in shares]
    weights = [share for _, share in shares]
    return [one if one.class_id else replace(one, class_id=draw.choices(ids, weights)[0]) for one in requests]


def duration_s(requests: Sequence[Request]) -> float:
    """From the first to the last arrival, at least one microsecond."""
    return max(requests[-1].arrival_s - requests[0].arrival_s, 1e-6)


def at_rate(requests: Sequence[Request], rate_rps: float) -> list[Request]:
    """The same requests in the same order, arriving at `rate_rps` on average: time is compressed or stretched."""
    factor = len(requests) / rate_rps / duration_s(requests)
    return [replace(one, arrival_s=one.arrival_s * factor) for one in requests]


def superposed(requests: Sequence[Request], rate_rps: float, seed: int) -> list[Request]:
    """About as many requests at `rate_rps`, as the sum of randomly offset copies of the trace.

    With k = rate / (the trace's own rate), k copies (the last one thinned to the fraction) each contribute a window
    of duration / k, cut at a random offset, cyclically. Compressing time instead would multiply the trace's drift.
    """
    draw = Random(f"superpose-{seed}")
    total_s = duration_s(requests)
    copies = rate_rps * total_s / len(requests)
    window_s = total_s / copies
    whole = int(copies)
    parts = [1.0] * whole + ([copies - whole] if copies > whole else [])
    merged: list[Request] = []
    for share in parts:
        merged += _window(requests, draw.uniform(0, total_s), window_s, total_s, share, draw)
    merged.sort(key=lambda one: one.arrival_s)
    return merged


def _window(
    requests: Sequence[Request], offset_s: float, window_s: float, total_s: float, share: float, draw: Random
) -> list[Request]:
    cut: list[Request] = []
    for one in requests:
        arrival_s = (one.arrival_s - offset_s) % total_s
        if arrival_s < window_s and (share == 1.0 or draw.random() < share):
            cut.append(replace(one, arrival_s=arrival_s))
    return cut
