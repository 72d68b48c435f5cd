"""From a recording to what the simulator says of its runs: only other runs than the predicted ones are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import NamedTuple

from bench.system_clients import Run
from bench.system_doors import OK, Doors
from bench.system_host import Beside, LearnedHost, Means, MeanStep, Part, learn_host, middle_mean
from bench.system_load import Seen
from bench.system_recording import Recording, Steps
from bench.system_sim import (
    LEARNING_RATES,
    SETTLING_S,
    Learned,
    Way,
    Ways,
    fit,
    is_settled,
    part_of,
    simulate,
)
from scheduler_worker.core.plan import StepShape
from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.run import Outcome

PARTS = ("queue_s", "formation_s", "prefill_s", "ttft_s")
NUM_DRAWS = 3
UNTOLD_S = 0.0005  # Valkey's instants are cut to milliseconds
MOST_URGENT = "high"  # waits least for a slot: what it waits for is on its way


class Stages(NamedTuple):
    """One request's ways to the worker, seconds: queued until claimed, claimed until its first step."""

    sent_s: float
    class_id: str
    queued_s: float
    claimed_s: float


class Predicted(NamedTuple):
    """What the simulator makes of a run, with the ways that were drawn for it, in the order of `run.seen`."""

    outcomes: list[Outcome]
    ways: list[Way]


class Predictor:
    """Learns from a recording's learning run; predicts the others in their order, since gateways remember."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._policy = Policy.model_validate_json(recording.policy)
        self.fitted = fit(recording.info, recording.num_in_flight, recording.num_swap_blocks)
        self.ways = Ways.of(learned(recording), recording.learning.end_s)
        self._doors = self._opened()
        self.host = self._learn_host()
        self._doors.recall(recording.learning)

    def predict(self, load: float, run: Run) -> list[Predicted]:
        """The run at that share of the capacity, several times with other draws."""
        found, before = [], self._doors
        for seed in range(NUM_DRAWS):
            self._doors, ways = deepcopy(before), self.ways.draw([load] * len(run.seen), seed)
            host = self.host.drawing(seed)
            found.append(Predicted(self._simulate(run, host, self._doors, ways), ways))
        return found

    def _opened(self) -> Doors:
        """The gateways as they are when the learning run begins."""
        recording = self._recording
        num_gateways = 1 + max(one.gateway for one in recording.learning.requests)
        doors = Doors(self._policy, self.fitted.capacity, num_gateways, recording.capacity.began_at)
        doors.recall(recording.capacity)
        return doors

    def _learn_host(self) -> LearnedHost:
        run = self._recording.learning
        ways = self.ways.draw([LEARNING_RATES[part_of(one.sent_s, self.ways.part_s)] for one in run.seen])
        beside = Beside.fit(mean_steps(self._recording, self.fitted.cost))
        parts = learned_parts(self._recording, self.ways.part_s)

        def simulated(host: LearnedHost) -> Sequence[Means]:
            outcomes = self._simulate(run, host, deepcopy(self._doors), ways)
            return means_of(simulated_stages(run, outcomes), self.ways.part_s)

        return learn_host(beside, parts, simulated)

    def _simulate(self, run: Run, host: LearnedHost, doors: Doors, ways: Sequence[Way]) -> list[Outcome]:
        return simulate(run, self._policy, self.fitted, host, doors, ways)


def known_parts(recording: Recording, one: Seen) -> list[float] | None:
    """The gateway's and the worker's own times of a request (`PARTS`), if all are known."""
    known = [part for part in recording.parts.get(one.request_id, ()) if part is not None]
    return known if len(known) == len(PARTS) else None


def learned(recording: Recording) -> list[Learned]:
    """The learning run's first tokens beside the worker; requests of which a part is unknown are left out."""
    found = []
    for one in recording.learning.seen:
        parts, queued_s = known_parts(recording, one), recording.queued.get(one.request_id, (None,))[0]
        if parts is None or queued_s is None or one.first_s is None:
            continue
        at_worker_s = sum(parts[:3])
        before_s = max(0.0, queued_s + UNTOLD_S)
        found.append(Learned(one.sent_s, Way(before_s, one.first_s - one.sent_s - at_worker_s)))
    return found


def measured_stages(recording: Recording, run: Run) -> list[Stages]:
    """Of the run's requests whose every part is known."""
    classes, found = run.class_of(), []
    for one in run.seen:
        parts, queued = known_parts(recording, one), recording.queued.get(one.request_id, ())
        if one.status != OK or parts is None or one.first_s is None:
            continue
        known = [value for value in queued if value is not None]
        if len(known) == 2:
            claimed_s = parts[0] + parts[1] - sum(known) - UNTOLD_S
            found.append(Stages(one.sent_s, classes[one.index], known[1], claimed_s))
    return found


def simulated_stages(run: Run, outcomes: Iterable[Outcome]) -> list[Stages]:
    """Of the requests that were served."""
    found = []
    for seen, one in zip(run.seen, outcomes, strict=True):
        if one.refused or one.claimed_at is None or one.first_scheduled_at is None:
            continue
        queued_s = one.claimed_at - one.arrived_at - one.request.enqueue_s
        found.append(Stages(seen.sent_s, one.request.class_id, queued_s, one.first_scheduled_at - one.claimed_at))
    return found


def means_of(stages: Sequence[Stages], part_s: float) -> list[Means]:
    """By part of the learning run. The ways to the worker and back: of the most urgent class."""
    found = []
    for part in range(len(LEARNING_RATES)):
        mine = [one for one in stages if part_of(one.sent_s, part_s) == part and is_settled(one.sent_s, part_s)]
        urgent = [one for one in mine if one.class_id == MOST_URGENT]
        found.append(Means(_middle(urgent, lambda one: one.queued_s), _middle(urgent, lambda one: one.claimed_s)))
    return found


def _middle(stages: Iterable[Stages], value: Callable[[Stages], float]) -> float:
    return middle_mean([value(one) for one in stages])


def learned_parts(recording: Recording, part_s: float) -> list[Part]:
    """The learning run's parts as the host is learned from them."""
    found = []
    for part, means in enumerate(means_of(measured_stages(recording, recording.learning), part_s)):
        messages = messages_between(recording, part * part_s + SETTLING_S, (part + 1) * part_s)
        num_steps = max(1, sum(one.num_steps for one in messages))
        num_rows = sum(num_decoded(recording.learning, one) for one in messages) / num_steps
        found.append(Part(num_rows, means))
    return found


def mean_steps(recording: Recording, cost: StepCost) -> list[MeanStep]:
    """The learning run's messages of the worker that had work at their end."""
    run, found = recording.learning, []
    sizes = [one.num_prompt_tokens for one in run.requests]
    pairs_per_token = sum(size * (size + 1) / 2 for size in sizes) / sum(sizes)
    for one in messages_between(recording, 0.0, run.end_s):
        if one.num_running:
            num_rows, num_prompt = num_decoded(run, one) / one.num_steps, one.num_prompt / one.num_steps
            shape = StepShape(
                round(num_rows), round(num_prompt), one.num_context, round(num_prompt * pairs_per_token)
            )
            beside_s = one.interval_s / one.num_steps - cost.seconds(shape)
            found.append(MeanStep(one.num_steps, num_rows, beside_s))
    return found


def num_decoded(run: Run, message: Steps) -> float:
    """Tokens that came of rows that decode: not those that end a prompt."""
    mean_prompt = sum(one.num_prompt_tokens for one in run.requests) / len(run.requests)
    return max(0.0, message.num_generated - message.num_prompt / mean_prompt)


def messages_between(recording: Recording, begins_s: float, ends_s: float) -> list[Steps]:
    """The worker's messages about steps that lie between two instants of the learning run."""
    began_at = recording.learning.began_at
    return [
        one
        for one in recording.steps["learning"]
        if one.num_steps and began_at + begins_s <= one.at - one.interval_s and one.at <= began_at + ends_s
    ]
