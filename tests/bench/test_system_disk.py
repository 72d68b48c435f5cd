"""What the disk makes a writer wait is seen, and told apart by time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench import system_disk
from bench.system_disk import DiskProbe


def test_a_disk_that_is_slow_for_a_moment_is_slow_in_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, num_calls = os.fsync, 0

    def slow_once(file: int) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            time.sleep(0.2)
        real(file)

    monkeypatch.setattr(system_disk, "INTERVAL_S", 0.005)
    monkeypatch.setattr(os, "fsync", slow_once)
    probe = DiskProbe(tmp_path)
    probe.start()
    while len(probe.waits) < 5:
        time.sleep(0.005)
    probe.stop()

    slow_at, slow_s = probe.waits[2]
    assert slow_s >= 0.2
    assert probe.longest_s(0.0, time.time()) >= 0.2
    assert probe.longest_s(slow_at, slow_at) == slow_s
    assert probe.longest_s(0.0, probe.waits[0][0] - 1.0) == 0.0
    assert not list(tmp_path.iterdir())


def test_a_probe_that_never_began_stops(tmp_path: Path) -> None:
    probe = DiskProbe(tmp_path)
    probe.stop()
    assert probe.waits == []
