"""The gateway's question on simulated time: the core's forecast, what waits unclaimed, and the workers' cost models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scheduler_worker.core.admission import Ask, Refused, WorkerCapacity, request_cost
from scheduler_worker.core.forecast import Forecast, Waiting
from scheduler_worker.core.plan import Capacity
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader


class SimulatedAdmission:
    """One gateway, open from the start, in front of all workers, which publish their cost models without delay."""

    def __init__(
        self, policy: Policy, schedulers: Sequence[Scheduler], capacity: Capacity | Sequence[Capacity]
    ) -> None:
        """`capacity` is every worker's, or one for each."""
        self._policy = policy
        self._forecast = Forecast(0.0)
        self._load: dict[str, Waiting] = {}
        self._running: set[str] = set()
        self._reserved: dict[str, tuple[str, float]] = {}
        capacities = [capacity] * len(schedulers) if isinstance(capacity, Capacity) else capacity
        self._block_size = capacities[0].block_size
        self._workers = [
            WorkerCapacity(size.num_slots, size.num_blocks * size.block_size, one.cost_model)
            for one, size in zip(schedulers, capacities, strict=True)
        ]

    def refusal(self, header: SequenceHeader, now: float) -> float | None:
        """None when the request may enter (its place is then reserved), else seconds to come back."""
        class_id = self._policy.find(header.class_id).id
        ask = self.ask(header, class_id)
        decision = self._forecast.decide(
            self._policy, ask, self._load, self._workers, 1, now, len(self._running)
        )
        if isinstance(decision, Refused):
            return decision.retry_after_s
        cost = request_cost(self._policy, ask)
        self._forecast.accepted(ask, cost, now, header.block_hashes)
        self._reserved[header.seq_id] = (class_id, cost)
        self._change(class_id, 1, cost)
        return None

    def ask(self, header: SequenceHeader, class_id: str) -> Ask:
        """What is expected of the request; an oracle would know."""
        return self._forecast.ask(
            class_id, header.num_prompt_tokens, header.max_tokens, header.block_hashes, self._block_size
        )

    def claimed(self, seq_ids: Iterable[str]) -> None:
        """Workers took these; they wait no more."""
        for seq_id in seq_ids:
            self._running.add(seq_id)
            class_id, cost = self._reserved.pop(seq_id, ("", 0.0))
            if class_id:
                self._change(class_id, -1, -cost)

    def ended(self, seq_id: str, class_id: str, num_output_tokens: int) -> None:
        """An answer ended; its length teaches what to expect."""
        self.claimed((seq_id,))
        self._running.discard(seq_id)
        self._forecast.ended(class_id, num_output_tokens)

    def _change(self, class_id: str, num: int, cost: float) -> None:
        before = self._load.get(class_id, Waiting(0, 0.0))
        left = before.num + num
        self._load[class_id] = Waiting(left, before.cost + cost if left else 0.0)
