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
        self._sums = [
            known * exp((self._at - now) / m) + cost for known, m in zip(self._sums, MEMORIES_S, strict=True)
        ]
        self._at = now

    def value(self, now: float) -> float:
        """Cost tokens per second, by the memory that says more."""
        return max(self._rates(now), default=0.0)

    def lasting(self, now: float) -> float:
        """Cost tokens per second, by the long memory."""
        return self._rates(now)[-1] if self._began_at is not None else 0.0

    def _rates(self, now: float) -> list[float]:
        if self._began_at is None:
            return []
        age_s = max(now - self._began_at, MIN_AGE_S)
        fade = [exp((self._at - now) / m) / (m * (1.0 - exp(-age_s / m))) for m in MEMORIES_S]
        return [known * one for known, one in zip(self._sums, fade, strict=True)]


class Forecast:
    """Learns from what passes; answers `admission.decide`'s questions."""

    def __init__(self) -> None:
        self._accepted: dict[str, ArrivalRate] = {}
        self._offered: dict[str, ArrivalRate] = {}
        self._lengths: dict[str, OutputLengths] = {}
        self._num_accepted = 0
        self._mean = admission.MeanRequest(FIRST_PROMPT_TOKENS, FIRST_PROMPT_TOKENS, FIRST_PROMPT_TOKENS)

    def accepted(self, ask: admission.Ask, cost: float, now: float) -> None:
        """A request came in."""
        self._accepted.setdefault(ask.class_id, ArrivalRate()).add(cost, now)
        self._num_accepted += 1
        weight, mean = max(SIZE_WEIGHT, 1.0 / self._num_accepted), self._mean
        self._mean = admission.MeanRequest(
            mean.num_prompt_tokens + weight * (ask.num_prompt_tokens - mean.num_prompt_tokens),
            mean.num_output_tokens + weight * (ask.num_output_tokens - mean.num_output_tokens),
            mean.num_long_tokens
            + weight * ((ask.num_long_tokens or ask.num_output_tokens) - mean.num_long_tokens),
        )

    def ended(self, class_id: str, num_output_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        self._lengths.setdefault(class_id, OutputLengths()).observe(num_output_tokens)

    def ask(self, class_id: str, num_prompt_tokens: int, max_tokens: int) -> admission.Ask:
        """The request as admission sees it, with the answer that is to be expected."""
        lengths = self._lengths.setdefault(class_id, OutputLengths())
        mean, most = lengths.mean(max_tokens), lengths.expected(max_tokens)
        return admission.Ask(class_id, num_prompt_tokens, mean, num_long_tokens=most)

    def decide(
        self,
        policy: Policy,
        ask: admission.Ask,
        load: Mapping[str, Waiting],
        workers: Sequence[admission.WorkerCapacity],
        num_doors: int,
        now: float,
    ) -> admission.Admitted | admission.Refused:
        """Whether the request may enter; `load` is what waits in the pool, before this request. Asked once each."""
        cost = admission.request_cost(policy, ask)
        self._offered.setdefault(ask.class_id, ArrivalRate()).add(cost, now)
        rate = admission.rate_for(policy, policy.find(ask.class_id), workers, self._mean)
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
        return {class_id: self._demand(class_id, one, num_doors, now) for class_id, one in sums.items()}

    def _demand(self, class_id: str, waits: Waiting, num_doors: int, now: float) -> admission.Demand:
        accepted, offered = self._accepted.get(class_id), self._offered.get(class_id)
        return admission.Demand(
            waits.num,
            waits.cost,
            accepted.value(now) * num_doors if accepted else 0.0,
            offered.lasting(now) * num_doors if offered else 0.0,
        )
