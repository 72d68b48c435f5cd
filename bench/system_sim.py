"""The simulator beside a measured run: fit what a step costs on one run, predict another from its arrivals alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.system_load import Planned, Seen
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Capacity, StepShape
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.protocol.messages import WorkerInfo, WorkerTelemetry
from scheduler_worker.sim.admission import SimulatedAdmission
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.run import Options, Outcome, Simulation
from scheduler_worker.sim.trace import Request

BUSY_SHARE = 0.8
LEARNING_RATES = (0.4, 0.9, 0.6, 1.1)  # of the capacity, one after the other for the same time


@dataclass(frozen=True)
class Fitted:
    """What the simulator is told: the worker's own cost model, the time beside a step for each row, its sizes."""

    figures: Mapping[str, float]
    gap_row_s: float
    capacity: Capacity

    @property
    def cost(self) -> StepCost:
        """The simulated device: a step takes what the worker learned, and the gap before the next one.

        The host's work beside the device grows with the rows of a step: a constant gap made TPOT in the learning run
        30 % too long at its median, one for each row 3 %.
        """
        known = self.figures
        return StepCost(
            base_s=known["base_s"],
            row_s=known["decode_row_s"] + self.gap_row_s,
            prefill_token_s=known["prefill_token_s"],
            kv_token_s=known["kv_token_s"],
            attention_pair_s=known["attention_pair_s"],
            swap_block_s=self.capacity.swap_block_s,
        )


def fit(info: WorkerInfo, messages: Sequence[WorkerTelemetry], num_in_flight: int, num_swap_blocks: int) -> Fitted:
    """From what a worker published of a run. The gap is what the capacity run's saturated
    intervals took beyond their predicted steps, shared out over the rows of those steps."""
    model = CostModel.from_dict(info.cost_model)
    full = [one for one in messages if one.num_running >= BUSY_SHARE * one.num_slots and one.num_steps]
    num_rows = sum(sum(one.num_generated_tokens.values()) for one in full)
    beyond_s = sum(one.interval_s - one.num_steps * mean_step_s(model, one) for one in full)
    capacity = Capacity(
        num_slots=info.num_slots,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_in_flight_steps=num_in_flight,
        num_swap_blocks=num_swap_blocks,
    )
    return Fitted(info.cost_model, max(0.0, beyond_s / num_rows) if num_rows else 0.0, capacity)


def mean_step_s(model: CostModel, message: WorkerTelemetry) -> float:
    """What the model predicts for the mean step of a message's interval."""
    num_steps = message.num_steps
    rows = [one for one in message.rows if one.state != "parked"]
    context = sum(one.num_prompt_tokens + one.num_generated_tokens for one in rows)
    num_prompt = message.num_prompt_tokens / num_steps
    usual = sum(one.num_prompt_tokens for one in rows) / max(1, len(rows))
    shape = StepShape(
        num_decode_rows=round(sum(message.num_generated_tokens.values()) / num_steps),
        num_prefill_tokens=round(num_prompt),
        num_kv_tokens=context,
        num_attention_pairs=round(num_prompt * usual / 2),
    )
    return model.predict(shape)


def predict(requests: Sequence[Planned], seen: Sequence[Seen], policy: Policy, fitted: Fitted) -> list[Outcome]:
    """What the simulator makes of the same requests at the instants at which they were sent, in the order of `seen`."""
    lengths = {one.index: one for one in requests}
    arrivals = [
        Request(
            arrival_s=max(0.0, one.sent_s),
            num_prompt_tokens=lengths[one.index].num_prompt_tokens,
            num_output_tokens=lengths[one.index].num_output_tokens,
            class_id=lengths[one.index].class_id,
        )
        for one in seen
    ]
    scheduler = Scheduler(policy, fitted.capacity, cost_model=CostModel.from_dict(fitted.figures))
    admission = SimulatedAdmission(policy, [scheduler], fitted.capacity)
    options = Options(in_flight=fitted.capacity.max_in_flight_steps, known_lengths=True, keep_events=False)
    return Simulation(arrivals, [scheduler], [fitted.cost], options, admission).run().outcomes


def without_admission(policy: Policy) -> Policy:
    """The same policy, refusing nobody: for measuring what the system can carry."""
    return policy.model_copy(update={"admission": policy.admission.model_copy(update={"enabled": False})})


def path_times_s(beyond: Sequence[tuple[float, float | None]], end_s: float, per_s: float) -> list[float]:
    """A first token's times beside the worker, at the learning run's rate nearest to `per_s` requests/s.

    `beyond`: of each learning request, when it was sent and how much later its first token came than simulated (None
    where that is unknown). No request of the run that is predicted is in it. Above the highest rate that was learned,
    the times of that rate are used: what saturates only beyond it is not foreseen.
    """
    length_s = end_s / len(LEARNING_RATES)
    parts: list[list[tuple[float, float | None]]] = [[] for _ in LEARNING_RATES]
    for sent_s, value in beyond:
        parts[min(len(parts) - 1, max(0, int(sent_s / length_s)))].append((sent_s, value))
    known = [part for part in parts if any(value is not None for _, value in part)]
    nearest = min(known, key=lambda part: abs(len(part) / length_s - per_s), default=[])
    return [value for _, value in nearest if value is not None] or [0.0]


def draw(times: Sequence[float], count: int, seed: int = 0) -> list[float]:
    """So many of these times, with replacement."""
    return random.Random(seed).choices(times, k=count)
