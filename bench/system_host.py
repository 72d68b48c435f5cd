"""What the host adds around the device, learned from a recorded run whose parts each came at a rate of their own.

What steps take beside the device's time is seen in the worker's messages: a line over their rows where slots were free,
and how the messages lie around it. Two things are learned by simulating the run: how long news of a request are under
way, and what a step takes more or less than by the line. At each rate they are what makes the simulated part's means
those of the measured one, whatever they make up for; between two rates they go with the rate.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import NamedTuple

from scheduler_worker.sim.host import Host

NUM_ROUNDS = 10
NUM_WHOLE = 2  # rounds whose differences are corrected whole; after them, all count alike
BLOCK_STEPS = 8  # a host is late for so long; of 2 to 100, with 8 a learning run's waits spread most as measured
KEPT = 0.8  # of the values, around the median: what a mean is taken of


class Added(NamedTuple):
    """Seconds at one rate: the way of news of a request; what a step takes beyond the line, or less."""

    news_s: float
    step_s: float


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
    """By the share of the capacity that is asked for at that instant, which `share_at` tells. News are heard when the
    loop looks, once a step: their ways are spread evenly from 0 to twice their mean. How late the host is, is drawn for
    `BLOCK_STEPS` steps together."""

    def __init__(
        self,
        beside: Beside,
        known: Iterable[tuple[float, Added]],
        share_at: Callable[[float], float],
        seed: int = 0,
    ) -> None:
        super().__init__(0.0)
        self.beside, self.known = beside, sorted(known)
        self._share_at = share_at
        self._shares = [share for share, _ in self.known]
        self._draw = random.Random(f"host-{seed}")
        self._num_steps, self._swing = 0, 1.0

    def drawing(self, seed: int, share: float) -> LearnedHost:
        """The same host at this share, with other draws."""
        return LearnedHost(self.beside, self.known, lambda _: share, seed)

    def evened(self, full: Mapping[float, Sequence[MeanStep]]) -> LearnedHost:
        """The same host, but that steps with full slots take as much longer at each of these shares as in all messages
        of such steps. A host that is faster or slower for a few seconds is so at any rate, and the longer one looks the
        less it tells."""
        everything = self._beyond([one for steps in full.values() for one in steps])
        known = [
            (share, added._replace(step_s=added.step_s + everything - self._beyond(steps)))
            if (steps := full.get(share))
            else (share, added)
            for share, added in self.known
        ]
        return LearnedHost(self.beside, known, self._share_at)

    def _beyond(self, steps: Sequence[MeanStep]) -> float:
        """What a step takes on average beyond the line."""
        beyond_s = sum(one.num_steps * (one.beside_s - self.beside.mean_s(one.num_rows)) for one in steps)
        return beyond_s / max(1, sum(one.num_steps for one in steps))

    def news_s(self, now: float) -> float:
        return self._draw.uniform(0.0, 2.0 * self._added(now).news_s)

    def beside_s(self, now: float, num_rows: int) -> float:
        if self._num_steps % BLOCK_STEPS == 0 and self.beside.variance:
            shape = BLOCK_STEPS / self.beside.variance
            self._swing = self._draw.gammavariate(shape, 1.0 / shape)
        self._num_steps += 1
        return self.beside.mean_s(num_rows) * self._swing + self._added(now).step_s

    def _added(self, now: float) -> Added:
        """Between two rates, in proportion; beyond the last ones, theirs."""
        share, last = self._share_at(now), len(self._shares) - 1
        place = bisect_left(self._shares, share)
        if place == 0 or place > last:
            return self.known[min(place, last)][1]
        (low, below), (high, above) = self.known[place - 1], self.known[place]
        weight = (share - low) / (high - low)
        return Added(*(one + weight * (other - one) for one, other in zip(below, above, strict=True)))


def learn_host(
    beside: Beside,
    parts: Sequence[Part],
    share_at: Callable[[float], float],
    simulated: Callable[[LearnedHost], Sequence[Means]],
) -> LearnedHost:
    """The host with which a learning run, simulated, has the means that were measured.

    `simulated` answers with the means of the same parts, each round with other draws: after the first rounds, which
    come near, all further ones count alike.
    """
    added = [Added(one.means.first_s / 4, 0.0) for one in parts]
    for place in range(NUM_ROUNDS):
        host = LearnedHost(beside, _known(parts, added), share_at, place)
        weight = 1.0 / max(1, place + 2 - NUM_WHOLE)
        found = simulated(host)
        added = [
            _corrected(one, part, mean, weight) for one, part, mean in zip(added, parts, found, strict=True)
        ]
    return LearnedHost(beside, _known(parts, added), share_at)


def _known(parts: Sequence[Part], added: Sequence[Added]) -> list[tuple[float, Added]]:
    return [(part.share, one) for part, one in zip(parts, added, strict=True)]


def _corrected(known: Added, part: Part, simulated: Means, weight: float) -> Added:
    news_s = known.news_s + weight * (part.means.first_s - simulated.first_s)
    step_s = known.step_s + weight * (part.means.token_s - simulated.token_s) / part.echo
    return Added(max(0.0, news_s), max(-part.least_s / 2, step_s))  # no step ends before it begins


def middle_mean(values: Sequence[float]) -> float:
    """The mean without a tenth at either end; 0 of nothing."""
    ordered = sorted(values)
    cut = int(len(ordered) * (1.0 - KEPT) / 2.0)
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept) if kept else 0.0
