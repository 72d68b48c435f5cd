"""The imagined fleet goes through what it promises, so that the Live page can be developed against it."""

from __future__ import annotations

from typing import get_args

import pytest

from controlplane.telemetry.fake_fleet import SILENT_WORKER, STATES, FakeFleet, State
from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.schema import LiveSnapshot
from scheduler_worker.protocol.reasons import render
from tests.telemetry.builders import T0

LENGTH_S = 90


def rehearsed(state: State) -> LiveSnapshot:
    """The page after a minute and a half; the fault, where there is one, began after thirty seconds."""
    fleet, fold = FakeFleet(state, T0, fault_at=T0 + 30), TelemetryFold(render)
    fleet.silent_at = T0 + LENGTH_S - 3 if state == "silent" else fleet.silent_at
    fold.set_policy(fleet.version, fleet.policy)
    for half in range(1, 2 * LENGTH_S + 1):
        for message in fleet.advance(T0 + half / 2):
            fold.take(message)
        fold.tick(T0 + half / 2)
    fold.set_workers(fleet.infos(), fleet.leases(T0 + LENGTH_S))
    return fold.snapshot(T0 + LENGTH_S, number=1)


@pytest.mark.parametrize(
    ("state", "verdict"), [("calm", "kept"), ("fault", "broken"), ("silent", "kept"), ("empty", "no_traffic")]
)
def test_each_state_has_its_verdict(state: State, verdict: str) -> None:
    assert rehearsed(state).verdict.kind == verdict


def test_the_fault_has_causes_and_a_rule() -> None:
    verdict = rehearsed("fault").verdict
    assert verdict.causes[0].text.startswith("Nobody yielded to ")
    assert verdict.rule_path == "classes.1.preemption.preemptible"


def test_the_silent_worker_is_seen_as_silent() -> None:
    workers = rehearsed("silent").workers
    assert [worker.id for worker in workers if worker.state == "silent"] == [SILENT_WORKER]


def test_every_state_can_be_chosen() -> None:
    assert get_args(State) == STATES
