"""Whether a measurement of this machine can be trusted: what else used its processors meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_BUSY = 0.3
MAX_SPREAD = 1.5
LOOK_S = 1.0
CPU_TIMES = Path("/proc/stat")


def busy_share() -> float:
    """The share of this machine's processors that is in use while we wait, 0 to 1.

    Where the kernel does not count it (macOS), the load average of the last minute by processors.
    """
    if not CPU_TIMES.exists():
        return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    before = _cpu_times()
    time.sleep(LOOK_S)
    total, idle = (after - was for after, was in zip(_cpu_times(), before, strict=True))
    return 1 - idle / total if total > 0 else 0.0


def _cpu_times() -> tuple[int, int]:
    """All and idle ticks since boot, of all processors; waiting for a disk is idle."""
    ticks = [int(word) for word in CPU_TIMES.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def doubt(known: Mapping[str, Any]) -> str | None:
    """Why the figures of a calibration may be too slow; None where nothing speaks against them."""
    reasons = []
    if (busy := known.get("busy_share", 0.0)) > MAX_BUSY:
        reasons.append(f"other programs used {busy:.0%} of its processors".replace("%", " %"))
    if (spread := known["measured"].get("spread", 1.0)) > MAX_SPREAD:
        reasons.append(f"the same steps took {spread:.1f} times as long from one round to the next")
    if not reasons:
        return None
    return f"The machine was busy while it was measured: {' and '.join(reasons)}."
