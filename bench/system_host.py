"""What the host adds around the device, learned from a recorded run whose parts each came at a rate of their own.

What steps take beside the device's time is seen in the worker's messages: a line over their rows where slots were free,
and how the messages lie around it. Two things are learned by simulating the run: how long news of a request are under
way, and what a step takes more or less than by the line. At each rate they are what makes the simulated part's means
those of the measured one, whatever they make up for; between two rates they go with the rate, and between two learning
runs with the time.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, linear_regression, median
from typing import NamedTuple

from scheduler_worker.sim.host import Host

NUM_ROUNDS = 10
NUM_COMING = 1  # rounds that only come near
BLOCK_STEPS = 8  # a host is late for so long; of 2 to 100, with 8 a learning run's waits spread most as measured
KEPT = 0.8  # of the values, around the median: what a mean is taken of


class Added(NamedTuple):
    """Seconds at one rate: the way of news of a request; what a step takes beyond the line, or less."""

    news_s: float
    step_s: float

    def towards(self, other: Added, weight: float) -> Added:
        """So far on the way to another."""
        return Added(*(one + weight * (its - one) for one, its in zip(self, other, strict=True)))


Known = dict[float, Added]  # by the share of the capacity that is asked for


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

    def beyond_s(self, steps: Sequence[MeanStep]) -> float:
        """What a step takes on average beyond the line."""
        beyond_s = sum(one.num_steps * (one.beside_s - self.mean_s(one.num_rows)) for one in steps)
        return beyond_s / max(1, sum(one.num_steps for one in steps))

    @classmethod
    def fit(cls, parts: Sequence[Sequence[MeanStep]]) -> Beside:
        """The line of least squares through all parts, neither falling nor below zero. The mean of n steps varies an
        n-th as much as single ones; how much, neighbours tell: their difference has no part in a host's drift."""
        steps = [one for part in parts for one in part]
        rows, besides = [one.num_rows for one in steps], [one.beside_s for one in steps]
        if not sum(besides) > 0.0:
            return cls(0.0, 0.0)
        row_s, base_s = linear_regression(rows, besides) if len(set(rows)) > 1 else (0.0, fmean(besides))
        if base_s < 0.0:
            row_s, base_s = linear_regression(rows, besides, proportional=True)
        if row_s < 0.0:
            row_s, base_s = 0.0, fmean(besides)
        line = cls(base_s, row_s)
        squares = means = 0.0
        for one, after in (pair for part in parts for pair in pairwise(part)):
            difference_s = line.beyond_s([after]) - line.beyond_s([one])
            squares += difference_s**2 / (1 / one.num_steps + 1 / after.num_steps)
            means += line.mean_s(one.num_rows) ** 2
        return cls(base_s, row_s, squares / means if means else 0.0)


class Means(NamedTuple):
    """What is compared, in seconds: from queued to the first token; from one token to the next."""

    first_s: float
    token_s: float


class Part(NamedTuple):
    """One part of the learning run: its rate as a share of the capacity, what was measured, and what a step without
    rows takes by the cost model and the line."""

    share: float
    means: Means
    least_s: float

    @property
    def echo(self) -> float:
        """By how much the time per token grows when each step takes a second longer. While slots are free, rows are the
        rate times that time, and all of it but a step without rows goes with the rows."""
        return max(1.0, self.means.token_s / self.least_s) if self.share < 1.0 else 1.0


class LearnedHost(Host):
    """What it adds at an instant, `added` tells. News are heard when the loop looks, once a step: their ways are spread
    evenly from 0 to twice their mean. How late the host is, is drawn for `BLOCK_STEPS` steps together."""

    def __init__(self, beside: Beside, added: Callable[[float], Added], seed: int = 0) -> None:
        super().__init__(0.0)
        self.beside, self.added = beside, added
        self._draw = random.Random(f"host-{seed}")
        self._num_steps, self._swing = 0, 1.0

    def news_s(self, now: float) -> float:
        return self._draw.uniform(0.0, 2.0 * self.added(now).news_s)

    def beside_s(self, now: float, num_rows: int) -> float:
        if self._num_steps % BLOCK_STEPS == 0 and self.beside.variance:
            shape = BLOCK_STEPS / self.beside.variance
            self._swing = self._draw.gammavariate(shape, 1.0 / shape)
        self._num_steps += 1
        return self.beside.mean_s(num_rows) * self._swing + self.added(now).step_s


def added_at(known: Known, share: float) -> Added:
    """Between two rates, in proportion; beyond the last ones, theirs."""
    rates = sorted(known)
    place = bisect_left(rates, share)
    if place in (0, len(rates)):
        return known[rates[max(0, place - 1)]]
    low, high = rates[place - 1 : place + 1]
    return known[low].towards(known[high], (share - low) / (high - low))


def evened(known: Known, beside: Beside, full: Mapping[float, Sequence[MeanStep]]) -> Known:
    """The same, but that steps with full slots take as much longer at each of these shares as in all messages of such
    steps. A host that is faster or slower for a few seconds is so at any rate, and the longer one looks the less it
    tells."""
    everything_s = beside.beyond_s([one for steps in full.values() for one in steps])
    changed = {share: everything_s - beside.beyond_s(steps) for share, steps in full.items() if share in known}
    return known | {
        share: known[share]._replace(step_s=known[share].step_s + more_s) for share, more_s in changed.items()
    }


def learn_host(
    beside: Beside,
    parts: Sequence[Part],
    part_of: Callable[[float], int],
    simulated: Callable[[LearnedHost], Sequence[Means]],
) -> Known:
    """What the host added at each part's rate: with that the learning run, simulated, has the means that were measured.

    `simulated` answers with the means of the same parts, each round with other draws. Each tells what would have been
    right; the median of that is tried next, or a round whose queue grew by chance would move all that follow.
    """
    added = [Added(one.means.first_s / 4, 0.0) for one in parts]
    told: list[list[Added]] = [[] for _ in parts]
    for place in range(NUM_ROUNDS):
        found = simulated(LearnedHost(beside, lambda now, known=tuple(added): known[part_of(now)], place))
        for one, part, mean, mine in zip(added, parts, found, told, strict=True):
            mine.append(_corrected(one, part, mean))
        added = [Added(*map(median, zip(*mine[min(place, NUM_COMING) :], strict=True))) for mine in told]
    return {part.share: one for part, one in zip(parts, added, strict=True)}


def _corrected(known: Added, part: Part, simulated: Means) -> Added:
    news_s = known.news_s + part.means.first_s - simulated.first_s
    step_s = known.step_s + (part.means.token_s - simulated.token_s) / part.echo
    return Added(max(0.0, news_s), max(-part.least_s / 2, step_s))  # no step ends before it begins


def middle_mean(values: Sequence[float]) -> float:
    """The mean without a tenth at either end; 0 of nothing."""
    ordered = sorted(values)
    cut = int(len(ordered) * (1.0 - KEPT) / 2.0)
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept) if kept else 0.0
