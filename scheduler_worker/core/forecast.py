"""What admission reckons with: how much work arrives, how long answers become, how fast the pool is.

One forecast belongs to one door (a gateway, or the simulator). Its arrivals and answers are taken for a fair sample
of what the other doors see. Times are readings of one clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final, NamedTuple

from scheduler_worker.core import admission
from scheduler_worker.core.output_lengths import OutputLengths
from scheduler_worker.core.policy import Policy

MEMORY_S: Final = 10.0
SIZE_WEIGHT: Final = 0.02
FIRST_PROMPT_TOKENS: Final = 256.0


class Waiting(NamedTuple):
    """Accepted requests of one class that no worker has claimed: how many, and their cost tokens."""

    num: int
    cost: float


@dataclass(slots=True)
class ArrivalRate:
    """Work per second, older arrivals counting less: e-fold in `MEMORY_S`."""

    per_s: float = 0.0
    at: float = 0.0

    def add(self, cost: float, now: float) -> None:
        """Work arrived."""
        self.per_s = self.value(now) + cost / MEMORY_S
        self.at = now

    def value(self, now: float) -> float:
        """Cost tokens per second of late."""
        return self.per_s * exp(-(now - self.at) / MEMORY_S)


class Forecast:
    """Learns from what passes; answers `admission.decide`'s questions."""

    def __init__(self) -> None:
        self._arrivals: dict[str, ArrivalRate] = {}
        self._lengths: dict[str, OutputLengths] = {}
        self._mean_prompt = FIRST_PROMPT_TOKENS
        self._mean_output = FIRST_PROMPT_TOKENS

    def accepted(self, ask: admission.Ask, cost: float, now: float) -> None:
        """A request came in."""
        self._arrivals.setdefault(ask.class_id, ArrivalRate()).add(cost, now)
        self._mean_prompt += SIZE_WEIGHT * (ask.num_prompt_tokens - self._mean_prompt)
        self._mean_output += SIZE_WEIGHT * (ask.num_output_tokens - self._mean_output)

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
