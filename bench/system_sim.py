"""The simulator beside a measured run: fit what a step costs on one run, predict another from its arrivals alone."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
LEARNING_RATES = (0.4, 0.7, 0.9, 1.2, 1.6)  # of the capacity, one after the other for the same time
LIGHT_RATE = 0.75


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


class Way(NamedTuple):
    """What a request's first token takes beside the worker, in seconds: from sending until it is queued, and from the
    worker to the client."""

    before_s: float
    after_s: float


def predict(
    requests: Sequence[Planned],
    seen: Sequence[Seen],
    policy: Policy,
    fitted: Fitted,
    ways: Sequence[Way],
    network_s: float,
) -> list[Outcome]:
    """What the simulator makes of the same requests, each queued so long after it was sent, in the order of `seen`."""
    lengths = {one.index: one for one in requests}
    arrivals = [
        Request(
            arrival_s=max(0.0, one.sent_s + way.before_s),
            num_prompt_tokens=lengths[one.index].num_prompt_tokens,
            num_output_tokens=lengths[one.index].num_output_tokens,
            class_id=lengths[one.index].class_id,
        )
        for one, way in zip(seen, ways, strict=True)
    ]
    order = sorted(range(len(arrivals)), key=lambda place: arrivals[place].arrival_s)
    scheduler = Scheduler(policy, fitted.capacity, cost_model=CostModel.from_dict(fitted.figures))
    admission = SimulatedAdmission(policy, [scheduler], fitted.capacity)
    options = Options(
        in_flight=fitted.capacity.max_in_flight_steps,
        known_lengths=True,
        network_s=network_s,
        mirrored=True,
        keep_events=False,
    )
    inputs = [arrivals[place] for place in order]
    found = Simulation(inputs, [scheduler], [fitted.cost], options, admission).run().outcomes
    outcomes = dict(zip(order, found, strict=True))
    return [outcomes[place] for place in range(len(arrivals))]


def without_admission(policy: Policy) -> Policy:
    """The same policy, refusing nobody: for measuring what the system can carry."""
    return policy.model_copy(update={"admission": policy.admission.model_copy(update={"enabled": False})})


class Learned(NamedTuple):
    """One request of the learning run: when it was sent, its way, and the time from queued to claimed. Seconds."""

    sent_s: float
    way: Way
    claim_s: float


@dataclass(frozen=True)
class Ways:
    """The learning run's requests, by the rate at which they came; no request of a run that is predicted is in it.

    At light rates slots are free, so that the time to a claim is all travel: its median sets the simulator's
    `network_s` (an arrival's, a claim's and its answer's way), what exceeds it counts as time before the queue.
    """

    parts: Sequence[Sequence[Learned]]
    part_s: float

    @classmethod
    def of(cls, learned: Iterable[Learned], end_s: float) -> Ways:
        """Cut into the parts of equal rate."""
        part_s = end_s / len(LEARNING_RATES)
        parts: list[list[Learned]] = [[] for _ in LEARNING_RATES]
        for one in learned:
            parts[min(len(parts) - 1, max(0, int(one.sent_s / part_s)))].append(one)
        return cls(parts, part_s)

    @property
    def network_s(self) -> float:
        """One of the three ways between queue and worker."""
        times = [one.claim_s for part in self._light() for one in part]
        return statistics.median(times) / 3 if times else 0.0

    def draw(self, count: int, per_s: float, seed: int = 0) -> list[Way]:
        """So many ways, with replacement, from the part whose rate is nearest."""
        r = random.Random(seed)
        ways = [one.way for one in _nearest(self.parts, self.part_s, per_s)] or [Way(0.0, 0.0)]
        travel_s = 3 * self.network_s
        below = _nearest(self._light(), self.part_s, per_s)
        beyond = [max(0.0, one.claim_s - travel_s) for one in below] or [0.0]
        drawn = zip(r.choices(ways, k=count), r.choices(beyond, k=count), strict=True)
        return [Way(way.before_s + later_s, way.after_s) for way, later_s in drawn]

    def _light(self) -> list[Sequence[Learned]]:
        return [part for rate, part in zip(LEARNING_RATES, self.parts, strict=True) if rate <= LIGHT_RATE]


def _nearest(parts: Iterable[Sequence[Learned]], part_s: float, per_s: float) -> Sequence[Learned]:
    known = [part for part in parts if part]
    return min(known, key=lambda part: abs(len(part) / part_s - per_s), default=())
