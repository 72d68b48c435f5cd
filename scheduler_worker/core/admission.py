"""May a request enter, and when would it start? Asked at the gateway, answered by the same code everywhere.

A class is guaranteed its share: its weight over all weights. Its predicted wait is the work that waits ahead in the
class, over the part of the pool's rate that the class can count on: the guaranteed share, and what more urgent and
idle classes leave of theirs. A request whose predicted wait (or predicted first token, where the class admits on
TTFT) keeps the class's promise is accepted; any other is refused with the time after which it would be accepted. So
a class within its guaranteed share is never refused, and above it the least urgent is refused first.

A class that takes more than its guaranteed share lives on what others leave. What waits in more urgent classes goes
before its requests, and each has to fit in as a whole, the larger the more is asked for than can be served: where
some must be refused in any case, the room that one long request would take serves several short ones.

Work is counted in cost tokens, as the policy prices them; the pool's rate in cost tokens per second comes from the
cost models that the workers publish. `capacity_margin` of that rate is held back: it is how much slower the workers
may be than predicted before an accepted request misses its bound. A bound is promised, and reckons with answers as
long as nine of ten stay below; an objective may be missed now and then, and reckons with the mean and a part of the
margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Reason, StepShape
from scheduler_worker.core.policy import ClassPolicy, Policy

OBJECTIVE_MARGIN: Final = 0.4  # of the capacity margin, for objectives; measured at loads of 0.85 and 1.5


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """What one worker publishes of itself."""

    num_slots: int
    num_kv_tokens: int
    cost_model: CostModel


@dataclass(frozen=True, slots=True)
class Demand:
    """One class's load: work that waits (cost tokens), what was accepted per second of late, and what was asked for."""

    num_waiting: int = 0
    waiting_cost: float = 0.0
    arriving_cost_per_s: float = 0.0
    offered_cost_per_s: float = 0.0


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
    """It may not enter now; after `retry_after_s` it could. `numbers` decided it."""

    reason: Reason
    retry_after_s: float
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


def request_cost(policy: Policy, ask: Ask) -> float:
    """The request's work in cost tokens."""
    prices = policy.fairness
    fresh = ask.num_prompt_tokens - ask.num_cached_tokens
    return (
        fresh * prices.prompt_token_cost
        + ask.num_cached_tokens * prices.cached_token_cost
        + ask.num_output_tokens * prices.output_token_cost
    )


def worker_rate(
    policy: Policy, worker: WorkerCapacity, num_prompt_tokens: float, num_output_tokens: float
) -> float:
    """Cost tokens per second of a full worker, for requests of these mean sizes.

    One request takes its prompt's time once, and its share of a full decode step for each output token.
    """
    model = worker.cost_model
    context = num_prompt_tokens + num_output_tokens / 2
    by_memory = worker.num_kv_tokens / max(context, 1.0)
    slots = min(worker.num_slots, policy.batch_limit.max_slots or worker.num_slots)
    num_rows = max(1, int(min(slots, by_memory)))
    step_s = model.predict(StepShape(num_rows, 0, int(num_rows * context)))
    prompt_s = num_prompt_tokens * model.prefill_token_s(int(num_prompt_tokens / 2))
    seconds = prompt_s + num_output_tokens * step_s / num_rows
    return _price(policy, num_prompt_tokens, num_output_tokens) / max(seconds, 1e-9)


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


def shares(policy: Policy, demands: Mapping[str, Demand], rate: float) -> dict[str, float]:
    """The share of the pool's rate that each class can count on, its own and what others leave.

    A class needs what arrives, and what waits spread over its bound. What the others do not need of their guaranteed
    shares is left over; it goes to the classes that need more than theirs, the most urgent first.
    """
    total = sum(one.weight for one in policy.classes)
    guaranteed = {one.id: one.weight / total for one in policy.classes}
    needed = {one.id: _needed_share(one, demands.get(one.id, Demand()), rate) for one in policy.classes}
    result: dict[str, float] = {}
    for one in sorted(policy.classes, key=lambda one: one.rank):
        left = sum(max(0.0, guaranteed[other] - needed[other]) for other in guaranteed if other != one.id)
        taken = sum(
            max(0.0, min(needed[other.id], result[other.id]) - guaranteed[other.id])
            for other in policy.classes
            if other.id in result
        )
        result[one.id] = guaranteed[one.id] + max(0.0, left - taken)
    return result


def _needed_share(one: ClassPolicy, demand: Demand, rate: float) -> float:
    if rate <= 0.0:
        return 1.0
    return (demand.arriving_cost_per_s + demand.waiting_cost / _bound_s(one)) / rate


def _bound_s(one: ClassPolicy) -> float:
    return one.slo.ttft_s if one.admit_on == "ttft" else one.max_wait_s


def predict_start(policy: Policy, ask: Ask, demands: Mapping[str, Demand], rate: float) -> float:
    """Seconds until the request's first chunk, if it entered now."""
    rules = policy.find(ask.class_id)
    mine = demands.get(rules.id, Demand())
    guaranteed = rules.weight / sum(one.weight for one in policy.classes)
    is_beyond = mine.arriving_cost_per_s > guaranteed * rate
    ahead = mine.waiting_cost + (_waiting_before(policy, rules, demands) if is_beyond else 0.0)
    if ahead <= 0.0:
        return 0.0
    mine_per_s = max(shares(policy, demands, rate)[rules.id] * rate, 1e-9)
    if is_beyond:
        ahead += request_cost(policy, ask) * max(1.0, mine.offered_cost_per_s / mine_per_s)
    return ahead / mine_per_s


def _waiting_before(policy: Policy, rules: ClassPolicy, demands: Mapping[str, Demand]) -> float:
    """Work that waits in more urgent classes."""
    return sum(
        demands[one.id].waiting_cost for one in policy.classes if one.rank < rules.rank and one.id in demands
    )


def decide(
    policy: Policy, ask: Ask, demands: Mapping[str, Demand], rate: float, prefill_s: float
) -> Admitted | Refused:
    """Whether the request may enter. `rate` is `pool_rate`'s, `prefill_s` the cost model's for its prompt.

    `ask.class_id` is a class of the policy (retired ids resolved).
    """
    rules = policy.find(ask.class_id)
    demand = demands.get(rules.id, Demand())
    wait_s = predict_start(policy, ask, demands, rate)
    if demand.num_waiting >= rules.queue_limit:
        return _queue_full(rules, demand, wait_s)
    if not policy.admission.enabled:
        return Admitted(wait_s, wait_s + prefill_s)
    most_s = rules.max_wait_s * policy.admission.wait_factor
    reason = Reason.PREDICTED_WAIT
    if rules.admit_on == "ttft":
        most_s, reason = rules.slo.ttft_s * policy.admission.wait_factor - prefill_s, Reason.PREDICTED_TTFT
    if wait_s <= max(most_s, 0.0):
        return Admitted(wait_s, wait_s + prefill_s)
    numbers = {
        "predicted_s": wait_s,
        "bound_s": most_s,
        "num_waiting": demand.num_waiting,
        "prefill_s": prefill_s,
    }
    return Refused(reason, wait_s - max(most_s, 0.0), numbers)


def _queue_full(rules: ClassPolicy, demand: Demand, wait_s: float) -> Refused:
    """Room again once as many have started as are too many."""
    excess = demand.num_waiting - rules.queue_limit + 1
    retry_after_s = wait_s * excess / max(demand.num_waiting, 1)
    numbers = {"num_waiting": demand.num_waiting, "queue_limit": rules.queue_limit}
    return Refused(Reason.QUEUE_FULL, retry_after_s, numbers)
