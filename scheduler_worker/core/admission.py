"""May a request enter, and when would it start? Asked at the gateway, answered by the same code everywhere.

In T seconds the pool serves `rate` · T cost tokens. More urgent classes take of it what waits in them and what keeps
arriving; less urgent ones at most their guaranteed shares (weight over all weights). A request starts when what is
left has served all that waits before it in its class, or when the class's guaranteed share has, if that is sooner:
so a class within its share is never refused, and above it the least urgent is refused first. A request whose
predicted wait (or first token, where the class admits on TTFT) keeps its class's promise is accepted; any other is
refused with the time after which it would be.

A class that takes more than its share has to fit in as a whole. What waits in more urgent classes goes first even
against its guaranteed share, because its counter is ahead; and its own work counts, the more the more is asked for
than can be served: where some must be refused in any case, the room of one long request serves several short ones.

Rows that nobody uses take requests at once: as many as there are rows start as fast as their prompts are computed.
Beyond those, each free row is credited with half a request: who runs is halfway through on average, who starts not.
After a burst nobody is halfway through: all have begun at once, and nobody starts before they end.

Work is counted in cost tokens, as the policy prices them; the pool's rate in cost tokens per second comes from the
cost models that the workers publish. `capacity_margin` of that rate is held back: it is how much slower the workers
may be than predicted before an accepted request misses its bound. A bound is promised, and reckons with answers as
long as nine of ten stay below, and with a burst that comes once more; an objective may be missed now and then, and
reckons with the mean, a part of the margin, and a burst that has passed. What arrives is `forecast`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Reason, StepShape
from scheduler_worker.core.policy import ClassPolicy, Policy

OBJECTIVE_MARGIN: Final = 0.4  # of the capacity margin, for objectives; measured at loads of 0.85 and 1.5
FREE_ROW_CREDIT: Final = 0.5  # of a request; see above
BURST_COUNTS: Final = 2.0  # in the time to come back
MIN_RATE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """What one worker publishes of itself."""

    num_slots: int
    num_kv_tokens: int
    cost_model: CostModel


@dataclass(frozen=True, slots=True)
class Demand:
    """One class's load: work that waits (cost tokens); per second, what is expected to be accepted, what is asked for,
    what is usual, and what a burst would bring beyond that if it came once more."""

    num_waiting: int = 0
    waiting_cost: float = 0.0
    arriving_cost_per_s: float = 0.0
    offered_cost_per_s: float = 0.0
    usual_cost_per_s: float = 0.0
    burst_cost_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Supply:
    """What the pool has for a request: cost tokens per second, rows that nobody uses, which share of a request's
    time its prompt takes, and how long those that run need until they are halfway through on average."""

    rate: float
    num_free_rows: int = 0
    prompt_share: float = 0.0
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request at the door. `num_output_tokens` is the expected answer: min(`max_tokens`, the class's mean);
    `num_long_tokens` what nine of ten answers stay below (0: the same)."""

    class_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    num_long_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """It may enter; the first chunk is predicted after `wait_s`, the first token after `ttft_s`."""

    wait_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not enter now; after `retry_after_s` it could, and would then take `takes_s` of the pool's time.

    `numbers` decided it.
    """

    reason: Reason
    retry_after_s: float
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    takes_s: float = 0.0


def request_cost(policy: Policy, ask: Ask) -> float:
    """The request's work in cost tokens."""
    prices = policy.fairness
    fresh = ask.num_prompt_tokens - ask.num_cached_tokens
    return (
        fresh * prices.prompt_token_cost
        + ask.num_cached_tokens * prices.cached_token_cost
        + ask.num_output_tokens * prices.output_token_cost
    )


def worker_rows(
    policy: Policy, worker: WorkerCapacity, num_prompt_tokens: float, num_output_tokens: float
) -> int:
    """How many requests of these mean sizes a worker runs at once: its slots, or what its memory holds."""
    by_memory = worker.num_kv_tokens / max(num_prompt_tokens + num_output_tokens / 2, 1.0)
    slots = min(worker.num_slots, policy.batch_limit.max_slots or worker.num_slots)
    return max(1, int(min(slots, by_memory)))


def worker_rate(
    policy: Policy, worker: WorkerCapacity, num_prompt_tokens: float, num_output_tokens: float
) -> float:
    """Cost tokens per second of a full worker, for requests of these mean sizes."""
    seconds = sum(_request_s(policy, worker, num_prompt_tokens, num_output_tokens))
    return _price(policy, num_prompt_tokens, num_output_tokens) / max(seconds, MIN_RATE)


def _request_s(
    policy: Policy, worker: WorkerCapacity, num_prompt_tokens: float, num_output_tokens: float
) -> tuple[float, float]:
    """A full worker's seconds for a request: its prompt once, and its share of a decode step for each output token."""
    model = worker.cost_model
    num_rows = worker_rows(policy, worker, num_prompt_tokens, num_output_tokens)
    context = num_prompt_tokens + num_output_tokens / 2
    step_s = model.predict(StepShape(num_rows, 0, int(num_rows * context)))
    prompt_s = num_prompt_tokens * model.prefill_token_s(int(num_prompt_tokens / 2))
    return prompt_s, num_output_tokens * step_s / num_rows


def _price(policy: Policy, num_prompt_tokens: float, num_output_tokens: float) -> float:
    prices = policy.fairness
    return num_prompt_tokens * prices.prompt_token_cost + num_output_tokens * prices.output_token_cost


def pool_rate(
    policy: Policy,
    workers: Iterable[WorkerCapacity],
    num_prompt_tokens: float,
    num_output_tokens: float,
    margin: float | None = None,
) -> float:
    """Cost tokens per second that the pool can promise: all workers, less the margin (None: the policy's)."""
    held_back = policy.admission.capacity_margin if margin is None else margin
    rate = sum(worker_rate(policy, one, num_prompt_tokens, num_output_tokens) for one in workers)
    return rate * (1.0 - held_back)


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """What requests are like: prompt, answer, and the answer that nine of ten stay below, in tokens."""

    num_prompt_tokens: float
    num_output_tokens: float
    num_long_tokens: float


def rate_for(
    policy: Policy, rules: ClassPolicy, workers: Sequence[WorkerCapacity], mean: MeanRequest
) -> float:
    """The rate to predict the class's wait with, for work that is counted at the mean answer.

    For a bound, every answer takes as long as the long one: a slower pool for the same work.
    """
    if rules.admit_on == "ttft":
        margin = OBJECTIVE_MARGIN * policy.admission.capacity_margin
        return pool_rate(policy, workers, mean.num_prompt_tokens, mean.num_output_tokens, margin)
    slow = pool_rate(policy, workers, mean.num_prompt_tokens, mean.num_long_tokens)
    counted = _price(policy, mean.num_prompt_tokens, mean.num_output_tokens)
    return slow * counted / _price(policy, mean.num_prompt_tokens, mean.num_long_tokens)


def bound_s(rules: ClassPolicy) -> float:
    """What the class's requests are admitted by: the TTFT objective, or the wait bound."""
    return rules.slo.ttft_s if rules.admit_on == "ttft" else rules.max_wait_s


def repeats(rules: ClassPolicy) -> float:
    """How many times more a burst is expected."""
    return 0.0 if rules.admit_on == "ttft" else 1.0


def supply_for(
    policy: Policy,
    rules: ClassPolicy,
    workers: Sequence[WorkerCapacity],
    mean: MeanRequest,
    num_running: int,
) -> Supply:
    """What the pool has for a request of this class, while it runs so many."""
    sizes = (mean.num_prompt_tokens, mean.num_output_tokens)
    num_rows = sum(worker_rows(policy, one, *sizes) for one in workers)
    times = [_request_s(policy, one, *sizes) for one in workers]
    prompt_share = max((prompt_s / max(prompt_s + decode_s, MIN_RATE) for prompt_s, decode_s in times), default=0.0)
    return Supply(rate_for(policy, rules, workers, mean), max(0, num_rows - num_running), prompt_share)


@dataclass(frozen=True, slots=True)
class _Other:
    """Another class: whether it is more urgent, its load, and its guaranteed cost tokens per second."""

    is_urgent: bool
    demand: Demand
    guaranteed: float

    @property
    def flow(self) -> float:
        """What it takes of each second in the long run."""
        arriving = self.demand.arriving_cost_per_s
        return arriving if self.is_urgent else min(arriving, self.guaranteed)

    @property
    def sated_at(self) -> float:
        """When its guaranteed share has served all it has, in seconds from now."""
        spare = self.guaranteed - self.demand.arriving_cost_per_s
        return self.demand.waiting_cost / spare if spare > 0.0 else inf


def predict_start(policy: Policy, ask: Ask, demands: Mapping[str, Demand], supply: Supply) -> float:
    """Seconds until the request's first chunk, if it entered now."""
    return _starts_after(policy, ask, demands, supply, 0.0)


def _starts_after(
    policy: Policy, ask: Ask, demands: Mapping[str, Demand], supply: Supply, added: float
) -> float:
    """The same, with so much more work waiting before it in its class."""
    rules, rate = policy.find(ask.class_id), max(supply.rate, MIN_RATE)
    mine, others = demands.get(rules.id, Demand()), _others(policy, rules, demands, rate)
    guaranteed = rate * rules.weight / sum(one.weight for one in policy.classes)
    is_beyond = mine.arriving_cost_per_s > guaranteed
    urgent = [one.demand for one in others if one.is_urgent]
    ahead, before = mine.waiting_cost + added, sum(one.waiting_cost for one in urgent)
    if ahead + before <= 0.0:
        return 0.0
    starts_s = (ahead + before) * supply.prompt_share / rate
    has_row = mine.num_waiting + sum(one.num_waiting for one in urgent) < supply.num_free_rows
    if is_beyond:
        left = max(guaranteed, rate - sum(one.flow for one in others))
        ahead += request_cost(policy, ask) * max(1.0, mine.offered_cost_per_s / left)
    if not has_row:
        credit = FREE_ROW_CREDIT * supply.num_free_rows * _mean_cost(demands)
        starts_s = max(starts_s, _left_over_after(others, rate, ahead - credit))
    starts_s = min(starts_s, (ahead + (before if is_beyond else 0.0)) / guaranteed)
    return starts_s if has_row else starts_s + supply.lag_s


def _others(
    policy: Policy, rules: ClassPolicy, demands: Mapping[str, Demand], rate: float
) -> list[_Other]:
    total = sum(one.weight for one in policy.classes)
    return [
        _Other(one.rank < rules.rank, demands[one.id], rate * one.weight / total)
        for one in policy.classes
        if one.id != rules.id and one.id in demands
    ]


def _mean_cost(demands: Mapping[str, Demand]) -> float:
    """Of a request that waits."""
    waiting = sum(one.waiting_cost for one in demands.values())
    return waiting / max(1, sum(one.num_waiting for one in demands.values()))


def _left_over_after(others: Sequence[_Other], rate: float, work: float) -> float:
    """Seconds until what other classes leave has served this work; inf if they leave nothing.

    A less urgent class takes its guaranteed share until it is sated, and then what arrives.
    """
    urgent, less = [one for one in others if one.is_urgent], [one for one in others if not one.is_urgent]
    work += sum(one.demand.waiting_cost for one in urgent)
    if work <= 0.0:
        return 0.0
    per_s = rate - sum(one.flow for one in urgent) - sum(one.guaranteed for one in less)
    for one in sorted(less, key=lambda one: one.sated_at):
        if one.sated_at == inf or work <= per_s * one.sated_at:
            break
        work += one.demand.waiting_cost
        per_s += one.guaranteed - one.flow
    return work / per_s if per_s > 0.0 else inf


def decide(
    policy: Policy, ask: Ask, demands: Mapping[str, Demand], supply: Supply, prefill_s: float
) -> Admitted | Refused:
    """Whether the request may enter. `supply` is `supply_for`'s, `prefill_s` the cost model's for its prompt.

    `ask.class_id` is a class of the policy (retired ids resolved).
    """
    rules = policy.find(ask.class_id)
    demand = demands.get(rules.id, Demand())
    wait_s = predict_start(policy, ask, demands, supply)
    if demand.num_waiting >= rules.queue_limit:
        return _queue_full(rules, demand, wait_s)
    if not policy.admission.enabled:
        return Admitted(wait_s, wait_s + prefill_s)
    most_s, reason = rules.max_wait_s * policy.admission.wait_factor, Reason.PREDICTED_WAIT
    if rules.admit_on == "ttft":
        most_s, reason = rules.slo.ttft_s * policy.admission.wait_factor - prefill_s, Reason.PREDICTED_TTFT
    if wait_s <= max(most_s, 0.0):
        return Admitted(wait_s, wait_s + prefill_s)
    numbers = {"bound_s": most_s, "num_waiting": demand.num_waiting, "prefill_s": prefill_s}
    return _refused(policy, ask, demands, supply, wait_s, max(most_s, 0.0), reason, numbers)


def _refused(
    policy: Policy,
    ask: Ask,
    demands: Mapping[str, Demand],
    supply: Supply,
    wait_s: float,
    most_s: float,
    reason: Reason,
    numbers: Mapping[str, float | int],
) -> Refused:
    """When the request would be accepted, and by how much it would make the next one wait.

    A wait shortens by a second a second. A burst counts twice: it may go on and come before the request does, and be
    expected once more when that is back. Then it has passed: nobody is told to come back later than all that waits
    now has started, nor that it would have waited for more of a burst than is expected. Nor sooner, in a class that is
    let in by its bound: it could meet its objective again, and would go before those who cannot and near their bounds.
    """
    rules = policy.find(ask.class_id)
    calm = {name: replace(one, arriving_cost_per_s=one.usual_cost_per_s) for name, one in demands.items()}
    calm_s = _starts_after(policy, ask, calm, supply, 0.0)
    takes_s = _starts_after(policy, ask, calm, supply, request_cost(policy, ask)) - calm_s
    burst_cost = sum(one.burst_cost_per_s for one in demands.values()) * bound_s(rules)
    burst_s = burst_cost / max(supply.rate, MIN_RATE)
    predicted_s = min(wait_s, max(most_s, calm_s + burst_s))
    retry_after_s = max(0.0, calm_s - max(0.0, most_s - BURST_COUNTS * burst_s))
    if rules.admit_on == "max_wait":
        retry_after_s = max(retry_after_s, _all_started_s(policy, demands, supply))
    return Refused(reason, retry_after_s, {**numbers, "predicted_s": predicted_s}, takes_s)


def _all_started_s(policy: Policy, demands: Mapping[str, Demand], supply: Supply) -> float:
    """Seconds until all have started who wait now."""
    work = sum(demands[one.id].waiting_cost for one in policy.classes if one.id in demands)
    credit = FREE_ROW_CREDIT * supply.num_free_rows * _mean_cost(demands)
    return (work - credit) / max(supply.rate, MIN_RATE) + supply.lag_s


def _queue_full(rules: ClassPolicy, demand: Demand, wait_s: float) -> Refused:
    """Room again once as many have started as are too many."""
    excess = demand.num_waiting - rules.queue_limit + 1
    retry_after_s = wait_s * excess / max(demand.num_waiting, 1)
    numbers = {"num_waiting": demand.num_waiting, "queue_limit": rules.queue_limit}
    return Refused(Reason.QUEUE_FULL, retry_after_s, numbers)
