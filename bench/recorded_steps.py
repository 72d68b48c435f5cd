"""Recorded steps of a real engine: a file of them, and how well the cost model predicts each before it sees it."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from scheduler_worker.core.applying import NUM_OBSERVED_EACH, OBSERVE_EVERY
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import StepShape

COLUMNS: Final = ("decode_rows", "prefill_tokens", "kv_tokens", "attention_pairs", "seconds", "cpu_seconds")


class Recorded(NamedTuple):
    """A step's shape, how long the device took, and how long this process computed for it."""

    shape: StepShape
    seconds: float
    cpu_seconds: float


class Errors(NamedTuple):
    """One step ahead, after warm-up. `mae`: mean |error| over the mean step; `mape`: mean of |error| / step."""

    mae: float
    mape: float
    num_steps: int


def errors_of(steps: Sequence[tuple[StepShape, float]], num_warm: int = NUM_OBSERVED_EACH) -> Errors:
    """Fit online as the worker does: every one of the first steps, then one of four."""
    model, errors, seconds = CostModel(), [], []
    for index, (shape, took_s) in enumerate(steps):
        if index >= num_warm:
            errors.append(abs(model.predict(shape) - took_s))
            seconds.append(took_s)
        if model.num_observed < NUM_OBSERVED_EACH or index % OBSERVE_EVERY == 0:
            model.observe(shape, took_s)
    shares = [error / took_s for error, took_s in zip(errors, seconds, strict=True)]
    return Errors(statistics.fmean(errors) / statistics.fmean(seconds), statistics.fmean(shares), len(errors))


def read(path: Path) -> list[Recorded]:
    """A recording as it was written."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    return [Recorded(StepShape(*map(int, row[:4])), float(row[4]), float(row[5])) for row in rows]


def write(path: Path, steps: Iterable[Recorded]) -> None:
    """One line a step as it comes, under the columns' names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for shape, seconds, cpu_seconds in steps:
            row = (
                shape.num_decode_rows,
                shape.num_prefill_tokens,
                shape.num_kv_tokens,
                shape.num_attention_pairs,
            )
            out.writerow((*row, f"{seconds:.5f}", f"{cpu_seconds:.5f}"))
            file.flush()
