"""The simulator beside a measured run: what is learned of one run predicts another from its arrivals alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.system_clients import Run
from bench.system_doors import Doors
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Capacity
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.host import Host
from scheduler_worker.sim.run import Options, Outcome, Simulation
from scheduler_worker.sim.trace import Request


@dataclass(frozen=True)
class Fitted:
    """The worker as the simulator is told of it: its own cost model, and its sizes."""

    figures: Mapping[str, float]
    capacity: Capacity

    @property
    def cost(self) -> StepCost:
        """The simulated device: a step takes what the worker learned."""
        known = self.figures
        return StepCost(
            base_s=known["base_s"],
            row_s=known["decode_row_s"],
            prefill_token_s=known["prefill_token_s"],
            kv_token_s=known["kv_token_s"],
            attention_pair_s=known["attention_pair_s"],
            swap_block_s=self.capacity.swap_block_s,
        )


def fit(info: WorkerInfo, num_in_flight: int, num_swap_blocks: int) -> Fitted:
    """From what a worker published after a run."""
    capacity = Capacity(
        num_slots=info.num_slots,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        max_in_flight_steps=num_in_flight,
        num_swap_blocks=num_swap_blocks,
    )
    return Fitted(info.cost_model, capacity)


class Way(NamedTuple):
    """What a request's first token takes beside the worker, in seconds: from sending until it is queued, from the
    worker to the client, and how much later than others' news of it are because it was late before."""

    before_s: float
    after_s: float
    late_s: float = 0.0


def simulate(
    run: Run, policy: Policy, fitted: Fitted, host: Host, doors: Doors, ways: Sequence[Way]
) -> list[Outcome]:
    """What the simulator makes of a run's requests, each with its way, in the order of `run.seen`."""
    planned = {one.index: one for one in run.requests}
    scheduler = Scheduler(policy, fitted.capacity, cost_model=CostModel.from_dict(fitted.figures))
    doors.begun(run.began_at, [planned[one.index].gateway for one in run.seen], scheduler)
    requests = [
        Request(
            arrival_s=one.sent_s,
            num_prompt_tokens=planned[one.index].num_prompt_tokens,
            num_output_tokens=planned[one.index].num_output_tokens,
            class_id=planned[one.index].class_id,
            enqueue_s=way.before_s + way.late_s,
        )
        for one, way in zip(run.seen, ways, strict=True)
    ]
    options = Options(
        in_flight=fitted.capacity.max_in_flight_steps,
        known_lengths=True,
        mirrored=True,
        host=host,
        keep_events=False,
    )
    return Simulation(requests, [scheduler], [fitted.cost], options, doors).run().outcomes


def without_admission(policy: Policy) -> Policy:
    """The same policy, refusing nobody: for measuring what the system can carry."""
    return policy.model_copy(update={"admission": policy.admission.model_copy(update={"enabled": False})})


class Learned(NamedTuple):
    """One request of a learning run: its index there, the share of the capacity at which it came, and its way."""

    number: int
    share: float
    way: Way


@dataclass(frozen=True)
class Ways:
    """Requests of learning runs, by the rate at which they came; no request of a run that is predicted is in it."""

    parts: Sequence[tuple[float, Sequence[Learned]]]

    @classmethod
    def of(cls, learned: Iterable[Learned]) -> Ways:
        """Those of equal rate together, by rising rate."""
        parts: dict[float, list[Learned]] = {}
        for one in learned:
            parts.setdefault(one.share, []).append(one)
        return cls(sorted(parts.items()))

    def draw(self, shares: Sequence[float], seed: int = 0) -> list[Way]:
        """A way for each of these shares of the capacity, with replacement. Between two rates that were learned, from
        both, the nearer one more often; beyond the last ones, from those."""
        r = random.Random(seed)
        return [_one_of(self.parts, share, r) for share in shares]

    def own(self, run: Run) -> list[Way]:
        """Each request of a learning run with its own way; where that is not known, with one of its rate."""
        own = {one.number: one.way for _, part in self.parts for one in part}
        drawn = self.draw([run.share_at(one.sent_s) for one in run.seen])
        return [own.get(one.index, other) for one, other in zip(run.seen, drawn, strict=True)]


def _one_of(known: Sequence[tuple[float, Sequence[Learned]]], share: float, r: random.Random) -> Way:
    above = [one for one in known if one[0] >= share] or known[-1:]
    below = [one for one in known if one[0] <= share] or known[:1]
    if not above:
        return Way(0.0, 0.0)
    (high, of_high), (low, of_low) = above[0], below[-1]
    chance = (share - low) / (high - low) if high > low else 1.0
    return r.choice(of_high if r.random() < chance else of_low).way
