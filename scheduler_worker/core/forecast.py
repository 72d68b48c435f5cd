"""What admission reckons with: how much work arrives, how long answers become, how fast the pool is.

One forecast belongs to one door (a gateway, or the simulator). Its arrivals and answers are taken for a fair sample
of what the other doors see. Times are readings of one clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from typing import Final, NamedTuple

from scheduler_worker.core import admission
from scheduler_worker.core.output_lengths import OutputLengths
from scheduler_worker.core.policy import Policy

MEMORIES_S: Final = (1.0, 10.0)
MIN_AGE_S: Final = 1.0
SIZE_WEIGHT: Final = 0.02
FIRST_PROMPT_TOKENS: Final = 256.0


class Waiting(NamedTuple):
    """Accepted requests of one class that no worker has claimed: how many, and their cost tokens."""

    num: int
    cost: float


class ArrivalRate:
    """Work per second of late: the larger of a short and a long memory (e-fold in so many seconds).

    The short one sees a burst while it can still be refused, the long one does not forget between two. Each is
    corrected for what it cannot have seen yet, or the first seconds would look idle.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * len(MEMORIES_S)
        self._began_at: float | None = None
        self._at = 0.0

    def add(self, cost: float, now: float) -> None:
        """Work arrived."""
        if self._began_at is None:
            self._began_at = now
        self._sums = [known * exp((self._at - now) / m) + cost for known, m in zip(self._sums, MEMORIES_S, strict=True)]
        self._at = now

    def value(self, now: float) -> float:
        """Cost tokens per second."""
        if self._began_at is None:
            return 0.0
        age_s = max(now - self._began_at, MIN_AGE_S)
        fade = [exp((self._at - now) / m) / (m * (1.0 - exp(-age_s / m))) for m in MEMORIES_S]
        return max(known * one for known, one in zip(self._sums, fade, strict=True))


class Forecast:
    """Learns from what passes; answers `admission.decide`'s questions."""

    def __init__(self) -> None:
        self._arrivals: dict[str, ArrivalRate] = {}
        self._lengths: dict[str, OutputLengths] = {}
        self._num_accepted = 0
        self._mean_prompt = FIRST_PROMPT_TOKENS
        self._mean_output = FIRST_PROMPT_TOKENS

    def accepted(self, ask: admission.Ask, cost: float, now: float) -> None:
        """A request came in."""
        self._arrivals.setdefault(ask.class_id, ArrivalRate()).add(cost, now)
        self._num_accepted += 1
        weight = max(SIZE_WEIGHT, 1.0 / self._num_accepted)
        self._mean_prompt += weight * (ask.num_prompt_tokens - self._mean_prompt)
        self._mean_output += weight * (ask.num_output_tokens - self._mean_output)

    def ended(self, class_id: str, num_output_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        self._lengths.setdefault(class_id, OutputLengths()).observe(num_output_tokens)

    def ask(self, class_id: str, num_prompt_tokens: int, max_tokens: int) -> admission.Ask:
        """The request as admission sees it, with the answer that is to be expected."""
        expected = self._lengths.setdefault(class_id, OutputLengths()).expected(max_tokens)
        return admission.Ask(class_id, num_prompt_tokens, expected)

    def decide(
        self,
        policy: Policy,
        ask: admission.Ask,
        load: Mapping[str, Waiting],
        workers: Sequence[admission.WorkerCapacity],
        num_doors: int,
        now: float,
    ) -> admission.Admitted | admission.Refused:
        """Whether the request may enter; `load` is what waits in the pool, before this request."""
        rate = admission.pool_rate(policy, workers, self._mean_prompt, self._mean_output)
        prefill_s = min((one.cost_model.prefill_s(ask.num_prompt_tokens) for one in workers), default=0.0)
        return admission.decide(policy, ask, self._demands(policy, load, num_doors, now), rate, prefill_s)

    def _demands(
        self, policy: Policy, load: Mapping[str, Waiting], num_doors: int, now: float
    ) -> dict[str, admission.Demand]:
        """By class of the policy; what waits under a retired name counts for the class that serves it."""
        sums: dict[str, Waiting] = {one.id: Waiting(0, 0.0) for one in policy.classes}
        for class_id, (num, cost) in load.items():
            try:
                served_as = policy.find(class_id).id
            except KeyError:
                continue
            sums[served_as] = Waiting(sums[served_as].num + num, sums[served_as].cost + cost)
        return {
            class_id: admission.Demand(num, cost, self._arriving(class_id, now) * num_doors)
            for class_id, (num, cost) in sums.items()
        }

    def _arriving(self, class_id: str, now: float) -> float:
        rate = self._arrivals.get(class_id)
        return rate.value(now) if rate is not None else 0.0
