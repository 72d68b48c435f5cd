"""The core's forecast, fed with what gateways see: load from Redis, capacity from the workers' heartbeats."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler_worker.core import admission as core
from scheduler_worker.core import forecast as pure
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.protocol.scripts import ClassReserve


class Forecast:
    """Arrivals and answers are this gateway's own; they are taken for a fair sample of what the others see."""

    def __init__(self, opened_at: float | None = None) -> None:
        self._forecast = pure.Forecast(opened_at)
        self._models: dict[str, tuple[WorkerInfo, CostModel]] = {}
        self.accepted = self._forecast.accepted
        self.ended = self._forecast.ended
        self.ask = self._forecast.ask

    def decide(
        self,
        policy: Policy,
        ask: core.Ask,
        load: Mapping[str, ClassReserve],
        workers: Mapping[str, WorkerInfo],
        num_gateways: int,
        now: float,
        num_claimed: int = 0,
    ) -> core.Admitted | core.Refused:
        """The core's decision; `load` is what waits in Redis, before this request, `num_claimed` what workers hold."""
        waiting = {class_id: pure.Waiting(one.num, one.cost) for class_id, one in load.items()}
        capacities = [self._capacity(one) for one in workers.values()]
        return self._forecast.decide(policy, ask, waiting, capacities, num_gateways, now, num_claimed)

    def _capacity(self, info: WorkerInfo) -> core.WorkerCapacity:
        known = self._models.get(info.worker)
        if known is None or known[0] is not info:
            known = self._models[info.worker] = (info, CostModel.from_dict(info.cost_model))
        return core.WorkerCapacity(info.num_slots, info.num_blocks * info.block_size, known[1])
