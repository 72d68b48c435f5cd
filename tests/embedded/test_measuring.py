"""When a calibration is not to be trusted, and what is said then."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from controlplane.embedded.demo import welcome
from controlplane.embedded.measuring import busy_share, doubt

DEMO = {
    "url": "http://127.0.0.1:1",
    "username": "u",
    "password": "p",
    "model": "m",
    "api_keys": {"high": "k"},
}
LOAD = {"rate_per_s": 1.0, "burst_rate_per_s": 2.0, "burst_s": 20.0, "burst_every_s": 180.0}


def measured(busy_share: float = 0.1, spread: float = 1.1) -> dict[str, Any]:
    figures = {"device": "cpu", "spread": spread}
    return {"measured": figures, "busy_share": busy_share, "tokens_per_s": 100.0, "load": LOAD}


def test_a_quiet_machine_raises_no_doubt() -> None:
    assert doubt(measured()) is None


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (measured(busy_share=0.85), "other programs used 85 % of its processors"),
        (measured(spread=2.34), "the same steps took 2.3 times as long from one round to the next"),
    ],
)
def test_a_busy_machine_is_named_with_the_figure_that_says_so(known: dict[str, Any], words: str) -> None:
    assert doubt(known) == f"The machine was busy while it was measured: {words}."


def test_figures_of_an_older_version_raise_no_doubt() -> None:
    assert doubt({"measured": {"device": "cpu"}}) is None


def test_every_start_says_how_to_measure_again(tmp_path: Any) -> None:
    text = welcome(DEMO, measured(busy_share=0.85), tmp_path, with_load=True)
    assert "used 85 % of its processors" in text
    assert "--recalibrate" in text


def test_a_program_that_computes_makes_the_machine_busy() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            assert busy_share() > 0
        finally:
            other.kill()
