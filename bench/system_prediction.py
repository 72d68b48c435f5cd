"""From a recording to what the simulator says of its runs: only other runs than the predicted ones are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from statistics import fmean
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
NUM_DRAWS = 5
UNTOLD_S = 0.0005  # Valkey's instants are cut to milliseconds
MOST_URGENT = "high"  # waits least for a slot: what it waits for is on its way


class Times(NamedTuple):
    """One request's, seconds: until it was queued; from there to its first token at the worker; from there to the
    client; from the first token to the last one."""

    number: int
    sent_s: float
    class_id: str
    before_s: float
    first_s: float
    after_s: float
    rest_s: float
    num_tokens: int

    @property
    def end_s(self) -> float:
        """When the client had its last token."""
        return self.sent_s + self.before_s + self.first_s + self.after_s + self.rest_s


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
            outcomes = self._simulate(run, self.host.drawing(seed, load), self._doors, ways)
            found.append(Predicted(outcomes, ways))
        return found

    def _opened(self) -> Doors:
        """The gateways as they are when the learning run begins."""
        recording = self._recording
        num_gateways = 1 + max(one.gateway for one in recording.learning.requests)
        doors = Doors(self._policy, self.fitted.capacity, num_gateways, recording.capacity.began_at)
        doors.recall(recording.capacity)
        return doors

    def _learn_host(self) -> LearnedHost:
        recording, run, part_s = self._recording, self._recording.learning, self.ways.part_s
        ways = self.ways.own(run)
        beside = Beside.fit(free_steps(recording, self.fitted.cost))
        least_s = beside.base_s + self.fitted.cost.base_s

        def share_at(now: float) -> float:
            return LEARNING_RATES[part_of(now, part_s)]

        def simulated(host: LearnedHost) -> Sequence[Means]:
            outcomes = self._simulate(run, host, deepcopy(self._doors), ways)
            return means_of(simulated_times(run, outcomes, ways), part_s)

        means = means_of(measured_times(recording, run), part_s)
        parts = [Part(share, mean, least_s) for share, mean in zip(LEARNING_RATES, means, strict=True)]
        host = learn_host(beside, parts, share_at, simulated)
        return host.evened(full_steps(recording, self.fitted.cost))

    def _simulate(self, run: Run, host: LearnedHost, doors: Doors, ways: Sequence[Way]) -> list[Outcome]:
        return simulate(run, self._policy, self.fitted, host, doors, ways)


def known_parts(recording: Recording, one: Seen) -> list[float] | None:
    """The gateway's and the worker's own times of a request (`PARTS`), if all are known."""
    known = [part for part in recording.parts.get(one.request_id, ()) if part is not None]
    return known if len(known) == len(PARTS) else None


def learned(recording: Recording) -> list[Learned]:
    """The learning run's first tokens beside the worker; requests of which a part is unknown are left out."""
    times, run = measured_times(recording, recording.learning), recording.learning
    part_s = run.end_s / len(LEARNING_RATES)
    share, means = lateness(times, part_s), mean_befores(times, part_s)
    found = []
    for one in times:
        part = part_of(one.sent_s, part_s)
        late_s = share * (one.before_s - means[part]) if LEARNING_RATES[part] < 1.0 else 0.0
        way = Way(one.before_s, one.after_s, max(-one.before_s, late_s))
        found.append(Learned(one.number, one.sent_s, way))
    return found


def measured_times(recording: Recording, run: Run) -> list[Times]:
    """Of the run's requests whose every part is known."""
    classes, found = run.class_of(), []
    for one in run.seen:
        parts, queued_s = known_parts(recording, one), recording.queued.get(one.request_id, (None,))[0]
        if one.status != OK or parts is None or queued_s is None or one.first_s is None or one.end_s is None:
            continue
        before_s, at_worker_s = max(0.0, queued_s + UNTOLD_S), sum(parts[:3])
        found.append(
            Times(
                number=one.index,
                sent_s=one.sent_s,
                class_id=classes[one.index],
                before_s=before_s,
                first_s=at_worker_s - before_s,
                after_s=one.first_s - one.sent_s - at_worker_s,
                rest_s=one.end_s - one.first_s,
                num_tokens=one.num_tokens,
            )
        )
    return found


def lateness(times: Sequence[Times], part_s: float) -> float:
    """By how much longer a request waits from queued to its first token for each second that it was late before: what
    keeps a gateway waiting keeps the worker's news waiting too. One slope for all parts in which slots were free; where
    they are not, slots are what requests wait for."""
    means, together, square = mean_befores(times, part_s), 0.0, 0.0
    for part, share in enumerate(LEARNING_RATES):
        mine = [one for one in times if part_of(one.sent_s, part_s) == part and share < 1.0]
        mean_first_s = fmean(one.first_s for one in mine) if mine else 0.0
        together += sum((one.before_s - means[part]) * (one.first_s - mean_first_s) for one in mine)
        square += sum((one.before_s - means[part]) ** 2 for one in mine)
    return max(0.0, together / square) if square else 0.0


def mean_befores(times: Sequence[Times], part_s: float) -> list[float]:
    """How long requests took until they were queued, by part."""
    found: list[list[float]] = [[] for _ in LEARNING_RATES]
    for one in times:
        found[part_of(one.sent_s, part_s)].append(one.before_s)
    return [fmean(one) if one else 0.0 for one in found]


def simulated_times(run: Run, outcomes: Iterable[Outcome], ways: Iterable[Way]) -> list[Times]:
    """Of the requests that were served."""
    found = []
    for seen, one, way in zip(run.seen, outcomes, ways, strict=True):
        if one.ttft_s is not None and one.e2e_s is not None:
            found.append(
                Times(
                    number=seen.index,
                    sent_s=seen.sent_s,
                    class_id=one.request.class_id,
                    before_s=way.before_s,
                    first_s=one.ttft_s - way.before_s,
                    after_s=way.after_s,
                    rest_s=one.e2e_s - one.ttft_s,
                    num_tokens=one.num_output_tokens,
                )
            )
    return found


def means_of(times: Sequence[Times], part_s: float) -> list[Means]:
    """By part of the learning run. First tokens: of the most urgent class. Further ones: of all answers that lie in the
    part as a whole."""
    found = []
    for part in range(len(LEARNING_RATES)):
        mine = [one for one in times if part_of(one.sent_s, part_s) == part and is_settled(one.sent_s, part_s)]
        firsts = [one.first_s for one in mine if one.class_id == MOST_URGENT]
        whole = [one for one in mine if one.end_s <= (part + 1) * part_s]
        num_tokens = sum(one.num_tokens - 1 for one in whole)
        found.append(Means(middle_mean(firsts), sum(one.rest_s for one in whole) / max(1, num_tokens)))
    return found


def mean_steps(
    recording: Recording, run: Run, cost: StepCost, begins_s: float, ends_s: float
) -> list[MeanStep]:
    """The worker's messages of this time of a run that had work at their end."""
    found = []
    sizes = [one.num_prompt_tokens for one in run.requests]
    pairs_per_token = sum(size * (size + 1) / 2 for size in sizes) / max(1, sum(sizes))
    for one in messages_between(recording, run, begins_s, ends_s):
        if one.num_running:
            num_rows, num_prompt = num_decoded(run, one) / one.num_steps, one.num_prompt / one.num_steps
            shape = StepShape(
                round(num_rows), round(num_prompt), one.num_context, round(num_prompt * pairs_per_token)
            )
            beside_s = one.interval_s / one.num_steps - cost.seconds(shape)
            found.append(MeanStep(one.num_steps, num_rows, beside_s))
    return found


def free_steps(recording: Recording, cost: StepCost) -> list[MeanStep]:
    """Of the learning run while less came than the system can do: when slots are full, more than their rows makes steps
    longer."""
    run = recording.learning
    free_s = sum(share < 1.0 for share in LEARNING_RATES) * run.end_s / len(LEARNING_RATES)
    return mean_steps(recording, run, cost, 0.0, free_s)


def full_steps(recording: Recording, cost: StepCost) -> dict[float, list[MeanStep]]:
    """While all slots were full: of the capacity run, and of the learning run by share; settled ones."""
    capacity, run = recording.capacity, recording.learning
    part_s = run.end_s / len(LEARNING_RATES)
    found = {1.0: mean_steps(recording, capacity, cost, capacity.warm_s, capacity.end_s)}
    for part, share in enumerate(LEARNING_RATES):
        if share > 1.0:
            found[share] = mean_steps(recording, run, cost, part * part_s + SETTLING_S, (part + 1) * part_s)
    return found


def num_decoded(run: Run, message: Steps) -> float:
    """Tokens that came of rows that decode: not those that end a prompt."""
    mean_prompt = sum(one.num_prompt_tokens for one in run.requests) / len(run.requests)
    return max(0.0, message.num_generated - message.num_prompt / mean_prompt)


def messages_between(recording: Recording, run: Run, begins_s: float, ends_s: float) -> list[Steps]:
    """The worker's messages about steps that lie between two instants of the run."""
    return [
        one
        for one in recording.steps.get(run.name, ())
        if one.num_steps and run.began_at + begins_s <= one.at - one.interval_s and one.at <= run.began_at + ends_s
    ]
