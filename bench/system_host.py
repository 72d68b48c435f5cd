"""What the host adds around the device, learned from a recorded run.

What steps take beside the device's time is seen in the worker's messages of the whole run: a line over their rows, and
how the messages lie around it. How long news are under way is not measured by itself: it is learned by simulating the
run. Each of its parts has its own load, and so its own number of rows: there it is what makes the simulated part's
means those of the measured one; between the parts it goes with the rows.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import NamedTuple

from scheduler_worker.sim.host import Host

NUM_ROUNDS = 6
DAMPING = 0.8
BLOCK_STEPS = 8  # how long a host is late for; of 2 to 100, with 8 a learning run's waits spread most as measured
KEPT = 0.8  # of the values, around the median: what a mean is taken of


class Delays(NamedTuple):
    """Seconds: the way of news; the way of a claim or its answer."""

    news_s: float
    answer_s: float


class MeanStep(NamedTuple):
    """One message of the worker: its steps, their mean rows, and what they took beside the device's time on average."""

    num_steps: int
    num_rows: float
    beside_s: float


@dataclass(frozen=True)
class Beside:
    """What a step takes beside the device's time: on average a line over its rows. `variance` is that of single steps
    whose mean is 1; it is large where the host is seldom late, but then by much."""

    base_s: float
    row_s: float
    variance: float = 0.0

    def mean_s(self, num_rows: float) -> float:
        """By the line."""
        return self.base_s + self.row_s * num_rows

    @classmethod
    def fit(cls, steps: Sequence[MeanStep]) -> Beside:
        """The line of least squares, neither falling nor below zero. The mean of n steps varies an n-th as much as
        single ones."""
        rows, besides = [one.num_rows for one in steps], [one.beside_s for one in steps]
        if not sum(besides) > 0.0:
            return cls(0.0, 0.0)
        row_s, base_s = linear_regression(rows, besides) if len(set(rows)) > 1 else (0.0, fmean(besides))
        if base_s < 0.0:
            row_s, base_s = linear_regression(rows, besides, proportional=True)
        if row_s < 0.0:
            row_s, base_s = 0.0, fmean(besides)
        line = cls(base_s, row_s)
        means = [line.mean_s(one.num_rows) for one in steps]
        squares = [one.num_steps * (one.beside_s - mean) ** 2 for one, mean in zip(steps, means, strict=True)]
        return cls(base_s, row_s, sum(squares) / sum(mean**2 for mean in means))


class Means(NamedTuple):
    """What is compared, in seconds: from queued to claimed; from there to the first step."""

    queued_s: float
    claimed_s: float


class Part(NamedTuple):
    """One part of the learning run: its mean rows, and what was measured."""

    num_rows: float
    means: Means


class LearnedHost(Host):
    """By the rows of the last step. News and answers are heard when the loop looks, once a step: their
    ways are spread evenly from 0 to twice their mean. How late the host is, is drawn for `BLOCK_STEPS` together."""

    def __init__(self, beside: Beside, parts: Sequence[Part], delays: Sequence[Delays], seed: int = 0) -> None:
        super().__init__(0.0)
        self.beside = beside
        self._parts, self._learned = parts, delays
        order = sorted(range(len(parts)), key=lambda place: parts[place].num_rows)
        self._rows = [parts[place].num_rows for place in order]
        self._delays = [delays[place] for place in order]
        self._draw = random.Random(f"host-{seed}")
        self._num_steps, self._swing = 0, 1.0

    def drawing(self, seed: int) -> LearnedHost:
        """The same host with other draws."""
        return LearnedHost(self.beside, self._parts, self._learned, seed)

    @property
    def known(self) -> list[tuple[float, Delays]]:
        """By rows."""
        return list(zip(self._rows, self._delays, strict=True))

    def news_s(self, num_rows: int) -> float:
        return self._spread(self._at(num_rows).news_s)

    def claim_s(self, num_rows: int) -> float:
        return self._spread(self._at(num_rows).answer_s)

    def answer_s(self, num_rows: int) -> float:
        return self._spread(self._at(num_rows).answer_s)

    def beside_s(self, num_rows: int) -> float:
        if self._num_steps % BLOCK_STEPS == 0 and self.beside.variance:
            shape = BLOCK_STEPS / self.beside.variance
            self._swing = self._draw.gammavariate(shape, 1.0 / shape)
        self._num_steps += 1
        return self.beside.mean_s(num_rows) * self._swing

    def _spread(self, mean_s: float) -> float:
        return self._draw.uniform(0.0, 2.0 * mean_s)

    def _at(self, num_rows: float) -> Delays:
        """Between two parts, in proportion; beyond the last ones, theirs."""
        place = bisect_left(self._rows, num_rows)
        if place == 0 or place == len(self._rows):
            return self._delays[min(place, len(self._rows) - 1)]
        below, above = self._rows[place - 1], self._rows[place]
        share = (num_rows - below) / (above - below)
        pairs = zip(self._delays[place - 1], self._delays[place], strict=True)
        return Delays(*(one + share * (other - one) for one, other in pairs))


def learn_host(
    beside: Beside, parts: Sequence[Part], simulated: Callable[[LearnedHost], Sequence[Means]]
) -> LearnedHost:
    """The host with which the learning run, simulated, has the means that were measured.

    `simulated` answers with the means of the same parts. Each difference is laid to the delay that it comes from.
    """
    delays = [Delays(one.means.queued_s / 4, one.means.claimed_s / 4) for one in parts]
    for _ in range(NUM_ROUNDS):
        found = simulated(LearnedHost(beside, parts, delays))
        delays = [
            _corrected(delay, part, mean) for delay, part, mean in zip(delays, parts, found, strict=True)
        ]
    return LearnedHost(beside, parts, delays)


def _corrected(known: Delays, part: Part, simulated: Means) -> Delays:
    measured = part.means
    news_s = known.news_s + DAMPING * (measured.queued_s - simulated.queued_s)
    answer_s = known.answer_s + DAMPING * (measured.claimed_s - simulated.claimed_s)
    return Delays(max(0.0, news_s), max(0.0, answer_s))


def middle_mean(values: Sequence[float]) -> float:
    """The mean without a tenth at either end; 0 of nothing."""
    ordered = sorted(values)
    cut = int(len(ordered) * (1.0 - KEPT) / 2.0)
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept) if kept else 0.0
