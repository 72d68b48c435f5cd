"""The gateways' admission on simulated time, as they do it: each with what it has seen itself, and late news."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.system_clients import Run
from scheduler_worker.core.admission import Ask, Refused, WorkerCapacity, request_cost
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.forecast import Forecast, Waiting
from scheduler_worker.core.plan import Capacity
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader

REFRESH_S = 0.5  # how old a gateway's view of the workers becomes
OK = 200


class Doors:
    """So many gateways, which remember from run to run. `begun` tells of the next run; then it answers a simulation.

    What waits and what runs is shared between them, as it is in Valkey; a cost model reaches a gateway when it looks.
    """

    def __init__(self, policy: Policy, capacity: Capacity, num: int, opened_at: float) -> None:
        self._policy, self._capacity = policy, capacity
        self._forecasts = [Forecast(opened_at) for _ in range(num)]
        self._origin = opened_at
        self._gateways: Sequence[int] = ()
        self._scheduler: Scheduler | None = None
        self._looks_at = [0.0] * num
        self._views: list[list[WorkerCapacity]] = [[] for _ in range(num)]
        self._load: dict[str, Waiting] = {}
        self._running: set[str] = set()
        self._reserved: dict[str, tuple[str, float]] = {}
        self._asked: dict[str, int] = {}

    def begun(self, at: float, gateways: Sequence[int], scheduler: Scheduler) -> None:
        """A run begins at this instant of the wall clock; its request number n asks `gateways[n]`."""
        self._origin, self._gateways, self._scheduler = at, gateways, scheduler
        num = len(self._forecasts)
        self._looks_at = [REFRESH_S * place / num for place in range(num)]
        self._views = [self._view() for _ in range(num)]
        self._load, self._running, self._reserved, self._asked = {}, set(), {}, {}

    def recall(self, run: Run) -> None:
        """See a recorded run pass: what was asked, what entered, how long answers became."""
        planned = {one.index: one for one in run.requests}
        passed = [(one.sent_s, 0, one) for one in run.seen]
        passed += [(one.end_s, 1, one) for one in run.seen if one.status == OK and one.end_s is not None]
        for at_s, is_end, one in sorted(passed, key=lambda each: each[:2]):
            known, now = planned[one.index], run.began_at + at_s
            forecast, class_id = self._forecasts[known.gateway], self._policy.find(known.class_id).id
            if is_end:
                forecast.ended(class_id, one.num_tokens)
                continue
            ask = forecast.ask(class_id, known.num_prompt_tokens, known.num_output_tokens)
            forecast.decide(self._policy, ask, {}, [], len(self._forecasts), now)
            if one.status == OK:
                forecast.accepted(ask, request_cost(self._policy, ask), now)

    def refusal(self, header: SequenceHeader, now: float) -> float | None:
        """None when the request may enter (its place is then reserved), else seconds to come back."""
        gateway = self._asked[header.seq_id] = self._gateways[header.arrival_number - 1]
        forecast, class_id = self._forecasts[gateway], self._policy.find(header.class_id).id
        ask = forecast.ask(class_id, header.num_prompt_tokens, header.max_tokens)
        decision = self._decide(gateway, ask, now)
        if isinstance(decision, Refused):
            return decision.retry_after_s
        cost = request_cost(self._policy, ask)
        forecast.accepted(ask, cost, self._origin + now)
        self._reserved[header.seq_id] = (class_id, cost)
        self._change(class_id, 1, cost)
        return None

    def claimed(self, seq_ids: Iterable[str]) -> None:
        """Workers took these; they wait no more."""
        for seq_id in seq_ids:
            self._running.add(seq_id)
            class_id, cost = self._reserved.pop(seq_id, ("", 0.0))
            if class_id:
                self._change(class_id, -1, -cost)

    def ended(self, seq_id: str, class_id: str, num_output_tokens: int) -> None:
        """An answer ended; its length teaches its gateway what to expect."""
        self.claimed((seq_id,))
        self._running.discard(seq_id)
        self._forecasts[self._asked[seq_id]].ended(class_id, num_output_tokens)

    def _decide(self, gateway: int, ask: Ask, now: float) -> object:
        if now >= self._looks_at[gateway]:
            self._looks_at[gateway] = now + REFRESH_S
            self._views[gateway] = self._view()
        return self._forecasts[gateway].decide(
            self._policy,
            ask,
            self._load,
            self._views[gateway],
            len(self._forecasts),
            self._origin + now,
            len(self._running),
        )

    def _view(self) -> list[WorkerCapacity]:
        """What the worker publishes: its fit, without what that missed of late."""
        assert self._scheduler is not None
        published = CostModel.from_dict(self._scheduler.cost_model.to_dict())
        num_kv_tokens = self._capacity.num_blocks * self._capacity.block_size
        return [WorkerCapacity(self._capacity.num_slots, num_kv_tokens, published)]

    def _change(self, class_id: str, num: int, cost: float) -> None:
        before = self._load.get(class_id, Waiting(0, 0.0))
        left = before.num + num
        self._load[class_id] = Waiting(left, before.cost + cost if left else 0.0)
