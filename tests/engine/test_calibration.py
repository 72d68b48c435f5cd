"""Calibration: whatever else the machine does only makes it slower, so the fastest round counts."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from scheduler_worker.engine.calibration import Calibration, best_of, calibrate, spread_of
from tests.engine.models import make_executor


def a_round(prefill_tokens_per_s: float, decode_step_s: dict[int, float]) -> Calibration:
    return Calibration(
        model="m", device="cpu", device_name="", dtype="float32", context_tokens=128,
        prefill_tokens_per_s=prefill_tokens_per_s, decode_step_s=decode_step_s,
    )  # fmt: skip


DISTURBED = a_round(320, {1: 0.1, 2: 0.9})
CALM = a_round(1280, {1: 0.05, 2: 0.05, 4: 0.1})
AGAIN = a_round(640, {1: 0.05, 2: 0.05, 4: 0.05})


def test_the_fastest_of_all_rounds_counts() -> None:
    best = best_of([DISTURBED, CALM, AGAIN])
    assert (best.prefill_tokens_per_s, best.decode_step_s) == (1280, {1: 0.05, 2: 0.05, 4: 0.05})


def test_the_spread_is_between_the_two_fastest_for_the_sizes_that_all_have() -> None:
    # 0.1 + 0.05 + 0.05 = 0.2 s, and 0.2 + 0.05 + 0.05 = 0.3 s
    assert spread_of([DISTURBED, CALM, AGAIN]) == pytest.approx(1.5)


def test_a_machine_is_measured_in_two_or_three_rounds(llama: PreTrainedModel) -> None:
    found = calibrate(make_executor(llama))
    assert found.num_rounds in (2, 3)
    assert min(found.decode_step_s.values()) > 0
