"""How long a step takes, as a function of its shape, learned while the worker runs.

    seconds = base + row · decode rows + prefill · prompt tokens + kv · context tokens read + pair · query-key pairs

Fitted by recursive least squares with forgetting, on *relative* errors, so that short and long steps count alike and
a step that took ten times too long (a page fault, a compilation) can pull no harder than its clipped residual.
Coefficients are never negative: a step does not get shorter by doing more.

Devices are not linear: a product of 15 rows may take longer than one of 16. Successive steps resemble each other, so
what the line missed of late is added to a step's prediction, though not to the price of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scheduler_worker.core.plan import StepShape

NAMES: Final = ("base_s", "decode_row_s", "prefill_token_s", "kv_token_s", "attention_pair_s")
SCALES: Final = (1.0, 1 / 32, 1 / 256, 1 / 32_768, 1 / 262_144)
FORGETTING: Final = 0.998
MIN_CLIP: Final = 0.2
CLIP_DEVIATIONS: Final = 4.0
NUM_WARM: Final = 64
NUM_SETTLED: Final = 256
OFFSET_RATE: Final = 0.2
MAX_OFFSET: Final = 0.2
MIN_STEP_S: Final = 1e-6
FIRST_INFORMATION: Final = 1e-3
MIN_RIDGE: Final = 1e-4
RELATIVE_RIDGE: Final = 1e-10
Vector = list[float]


class CostModel:
    """Predicts and learns step times; `prior` is used until steps have been seen."""

    def __init__(self, prior: Mapping[str, float] | None = None) -> None:
        given = prior or {"base_s": 0.005, "decode_row_s": 5e-5, "prefill_token_s": 5e-5}
        self._theta = [given.get(name, 0.0) / scale for name, scale in zip(NAMES, SCALES, strict=True)]
        self._information = [[0.0] * 5 for _ in range(5)]
        for index in range(5):
            self._information[index][index] = FIRST_INFORMATION
        self._deviation = MIN_CLIP
        self.num_observed = int(given.get("num_observed", 0))
        self.slowness = 1.0
        self._take(self._theta)
        self._usual = list(self._theta)
        self._offset_s = 0.0

    def predict(self, shape: StepShape) -> float:
        """Seconds that a step of this shape takes."""
        base, row, prefill, kv, pair = self._per_unit
        num_rows, num_prefill, num_kv, num_pairs = shape
        seconds = base + row * num_rows + prefill * num_prefill + kv * num_kv + pair * num_pairs
        return max(max(seconds, MIN_STEP_S) + self._offset_s, MIN_STEP_S)

    def _take(self, fitted: Vector) -> None:
        """Predict by these from now on. The scales are powers of two, so that what is scaled beforehand is the same."""
        self._fitted = fitted
        self._per_unit = [value * scale for value, scale in zip(fitted, SCALES, strict=True)]

    @staticmethod
    def _seconds(theta: Vector, shape: StepShape) -> float:
        seconds = (
            theta[0]
            + theta[1] * shape.num_decode_rows * SCALES[1]
            + theta[2] * shape.num_prefill_tokens * SCALES[2]
            + theta[3] * shape.num_kv_tokens * SCALES[3]
            + theta[4] * shape.num_attention_pairs * SCALES[4]
        )
        return max(seconds, MIN_STEP_S)

    def prefill_s(self, num_tokens: int, num_context: int = 0) -> float:
        """Seconds that these prompt tokens add to the steps that carry them, and one step's base."""
        pairs = num_tokens * num_context + num_tokens * (num_tokens + 1) // 2
        base, _, prefill, kv, pair = self._per_unit
        return max(base + prefill * num_tokens + kv * num_context + pair * pairs, MIN_STEP_S)

    def prefill_token_s(self, num_context: int) -> float:
        """Seconds that one more prompt token adds after `num_context` others."""
        return self._per_unit[2] + self._per_unit[4] * num_context

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learn from a step that took so long."""
        if seconds <= 0.0:
            return
        self._compare(shape, seconds)
        self.num_observed += 1
        weight = 1.0 / max(seconds, MIN_STEP_S)
        row = [
            weight,
            weight * shape.num_decode_rows * SCALES[1],
            weight * shape.num_prefill_tokens * SCALES[2],
            weight * shape.num_kv_tokens * SCALES[3],
            weight * shape.num_attention_pairs * SCALES[4],
        ]
        self._learn(row)
        if self.num_observed > NUM_SETTLED:
            self._note_missed(self._seconds(self._fitted, shape), seconds)

    def _note_missed(self, fitted_s: float, seconds: float) -> None:
        """What the line misses now; an outlier counts as a fifth of a step."""
        most_s = MAX_OFFSET * fitted_s
        missed_s = min(max(seconds - fitted_s, -most_s), most_s)
        self._offset_s += OFFSET_RATE * (missed_s - self._offset_s)

    def _compare(self, shape: StepShape, seconds: float) -> None:
        """`slowness`: recent steps against a model that follows slowly enough to remember how it used to be."""
        ratio = seconds / self._seconds(self._usual, shape)
        self.slowness += 0.05 * (min(ratio, 10.0) - self.slowness)
        rate = 1.0 if self.num_observed < NUM_WARM else 0.001
        for index, value in enumerate(self._fitted):
            self._usual[index] += rate * (value - self._usual[index])

    def _learn(self, row: Vector) -> None:
        """One step of recursive least squares on the information matrix.

        The covariance form of the same update loses its symmetry to rounding under forgetting, and diverges after
        tens of thousands of steps that repeat each other. A sum of squares plus a ridge cannot.
        """
        information = self._information
        for line, one in zip(information, row, strict=True):
            line[:] = [FORGETTING * known + one * other for known, other in zip(line, row, strict=True)]
        residual = self._clipped(1.0 - sum(map(float.__mul__, row, self._theta)))
        ridge = MIN_RIDGE + RELATIVE_RIDGE * sum(information[index][index] for index in range(5))
        gain = _solve(information, ridge, row)
        self._theta = [value + one * residual for value, one in zip(self._theta, gain, strict=True)]
        self._take(self._non_negative(ridge) if min(self._theta) < 0.0 else self._theta)

    def _non_negative(self, ridge: float) -> Vector:
        """The best fit without coefficients below zero: the most negative are left out, and the others fitted anew.

        Cutting them off alone would leave the others with what they had made up for.
        """
        kept, fitted = list(range(5)), self._theta
        moments = [
            sum(map(float.__mul__, line, self._theta)) + ridge * t
            for line, t in zip(self._information, self._theta, strict=True)
        ]
        while kept and min(fitted[index] for index in kept) < 0.0:
            kept.remove(min(kept, key=fitted.__getitem__))
            reduced = [[self._information[row][column] for column in kept] for row in kept]
            values = dict(zip(kept, _solve(reduced, ridge, [moments[index] for index in kept]), strict=True))
            fitted = [values.get(index, 0.0) for index in range(5)]
        return fitted

    def _clipped(self, residual: float) -> float:
        """Huber's rule: beyond a few usual deviations an error counts as that much, once the model is warm."""
        limit = max(MIN_CLIP, CLIP_DEVIATIONS * self._deviation)
        clipped = min(max(residual, -limit), limit)
        self._deviation += 0.02 * (abs(clipped) - self._deviation)
        return clipped if self.num_observed > NUM_WARM else residual

    def to_dict(self) -> dict[str, float]:
        """Seconds per unit by name, for the wire; `from_dict` reads it."""
        figures = {name: t * s for name, t, s in zip(NAMES, self._fitted, SCALES, strict=True)}
        return {**figures, "num_observed": float(self.num_observed), "slowness": self.slowness}

    @classmethod
    def from_dict(cls, figures: Mapping[str, float]) -> CostModel:
        """A model that predicts by these figures and goes on learning from there."""
        return cls(figures)


def _solve(matrix: list[Vector], ridge: float, right: Vector) -> Vector:
    """x of (matrix + ridge · 1) x = right, by elimination: positive definite, so no pivot is looked for."""
    rows = [[*line, value] for line, value in zip(matrix, right, strict=True)]
    size = len(rows)
    for index in range(size):
        rows[index][index] += ridge
    for index, pivot in enumerate(rows):
        for line in rows[index + 1 :]:
            factor = line[index] / pivot[index]
            for column in range(index + 1, size + 1):
                line[column] -= factor * pivot[column]
    solution = [0.0] * size
    for index in range(size - 1, -1, -1):
        known = sum(rows[index][column] * solution[column] for column in range(index + 1, size))
        solution[index] = (rows[index][size] - known) / rows[index][index]
    return solution
