"""The cost model on recorded steps of the real engine: SmolLM2-135M on one CPU thread, prompts and decodes mixed.

The recording is `bench.record_steps`'s, of a machine otherwise at rest. The seconds on the clock are learned from, as
a worker does.
"""

from __future__ import annotations

from pathlib import Path

from bench.recorded_steps import Recorded, errors_of, read
from scheduler_worker.core.plan import StepShape

RECORDED = Path(__file__).with_name("recorded_steps.csv")


def clock_seconds(steps: list[Recorded]) -> list[tuple[StepShape, float]]:
    return [(one.shape, one.seconds) for one in steps]


def test_the_recording_mixes_prompts_and_decodes() -> None:
    shapes = [one.shape for one in read(RECORDED)]
    assert (
        min(sum(one.num_prefill_tokens > 0 for one in shapes), sum(one.num_decode_rows > 8 for one in shapes))
        > 100
    )


def test_after_warm_up_the_mean_error_is_below_a_tenth_of_the_mean_step() -> None:
    assert errors_of(clock_seconds(read(RECORDED))).mae <= 0.10


def test_the_mean_relative_error_is_below_a_tenth() -> None:
    assert errors_of(clock_seconds(read(RECORDED))).mape <= 0.10


def test_shuffled_times_would_not_pass() -> None:
    steps = read(RECORDED)
    shuffled = [
        (one.shape, other.seconds) for one, other in zip(steps, [*steps[100:], *steps[:100]], strict=True)
    ]
    assert errors_of(shuffled).mae > 0.20
