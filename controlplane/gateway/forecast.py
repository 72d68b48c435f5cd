"""What admission reckons with: how much work arrives, how long answers become, how fast the pool is.

Arrivals and answers are this gateway's own; they are taken for a fair sample of what the others see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from scheduler_worker.core import admission as core
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.output_lengths import OutputLengths
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.protocol.scripts import ClassReserve

MEMORY_S: Final = 10.0
SIZE_WEIGHT: Final = 0.02
FIRST_PROMPT_TOKENS: Final = 256.0


@dataclass(slots=True)
class ArrivalRate:
    """Work per second, older arrivals counting less: e-fold in `MEMORY_S`."""

    per_s: float = 0.0
    at: float = 0.0

    def add(self, cost: float, now: float) -> None:
        self.per_s = self.value(now) + cost / MEMORY_S
        self.at = now

    def value(self, now: float) -> float:
        return self.per_s * math.exp(-(now - self.at) / MEMORY_S)


class Forecast:
    """Learns from what passes; answers `decide`'s questions. Times are readings of one clock, in seconds."""

    def __init__(self) -> None:
        self._arrivals: dict[str, ArrivalRate] = {}
        self._lengths: dict[str, OutputLengths] = {}
        self._models: dict[str, tuple[WorkerInfo, CostModel]] = {}
        self._mean_prompt = FIRST_PROMPT_TOKENS
        self._mean_output = FIRST_PROMPT_TOKENS

    def accepted(self, ask: core.Ask, cost: float, now: float) -> None:
        """A request came in."""
        self._arrivals.setdefault(ask.class_id, ArrivalRate()).add(cost, now)
        self._mean_prompt += SIZE_WEIGHT * (ask.num_prompt_tokens - self._mean_prompt)
        self._mean_output += SIZE_WEIGHT * (ask.num_output_tokens - self._mean_output)

    def ended(self, class_id: str, num_output_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        self._lengths.setdefault(class_id, OutputLengths()).observe(num_output_tokens)

    def ask(self, class_id: str, num_prompt_tokens: int, max_tokens: int) -> core.Ask:
        """The request as admission sees it, with the answer that is to be expected."""
        expected = self._lengths.setdefault(class_id, OutputLengths()).expected(max_tokens)
        return core.Ask(class_id, num_prompt_tokens, expected)

    def decide(
        self,
        policy: Policy,
        ask: core.Ask,
        load: Mapping[str, ClassReserve],
        workers: Mapping[str, WorkerInfo],
        num_gateways: int,
        now: float,
    ) -> core.Admitted | core.Refused:
        """The core's decision; `load` is what waits in Redis, before this request."""
        capacities = [self._capacity(one) for one in workers.values()]
        rate = core.pool_rate(policy, capacities, self._mean_prompt, self._mean_output)
        prefill_s = min((one.cost_model.prefill_s(ask.num_prompt_tokens) for one in capacities), default=0.0)
        return core.decide(policy, ask, self._demands(policy, load, num_gateways, now), rate, prefill_s)

    def _demands(
        self, policy: Policy, load: Mapping[str, ClassReserve], num_gateways: int, now: float
    ) -> dict[str, core.Demand]:
        """By class of the policy; what waits under a retired name counts for the class that serves it."""
        waiting: dict[str, list[float]] = {one.id: [0, 0.0] for one in policy.classes}
        for class_id, reserve in load.items():
            try:
                sums = waiting[policy.find(class_id).id]
            except KeyError:
                continue
            sums[0] += reserve.num
            sums[1] += reserve.cost
        return {
            class_id: core.Demand(int(num), cost, self._arriving(class_id, now) * num_gateways)
            for class_id, (num, cost) in waiting.items()
        }

    def _arriving(self, class_id: str, now: float) -> float:
        rate = self._arrivals.get(class_id)
        return rate.value(now) if rate is not None else 0.0

    def _capacity(self, info: WorkerInfo) -> core.WorkerCapacity:
        known = self._models.get(info.worker)
        if known is None or known[0] is not info:
            known = self._models[info.worker] = (info, CostModel.from_dict(info.cost_model))
        return core.WorkerCapacity(info.num_slots, info.num_blocks * info.block_size, known[1])
