"""From a recording to what the simulator says of its runs: only other runs than the predicted ones are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy
from statistics import fmean
from typing import NamedTuple

from bench.system_clients import Run
from bench.system_doors import OK, Doors
from bench.system_host import (
    Beside,
    Known,
    LearnedHost,
    Means,
    MeanStep,
    Part,
    added_at,
    evened,
    learn_host,
    middle_mean,
)
from bench.system_load import Seen
from bench.system_recording import Recording, Steps
from bench.system_sim import Learned, Way, Ways, fit, simulate
from scheduler_worker.core.plan import StepShape
from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.run import Outcome

PARTS = ("queue_s", "formation_s", "prefill_s", "ttft_s")
SETTLING_S = 0.75  # at the beginning of a part of a learning run, of the one before it
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
    """Learns from a recording's learning runs, and predicts the others."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.policy = Policy.model_validate_json(recording.policy)
        self.fitted = fit(recording.info, recording.num_in_flight, recording.num_swap_blocks)
        self._doors = self._remembering()
        self._learned = {run.name: learned(recording, run) for run in recording.learning}
        self.beside = Beside.fit(free_steps(recording, self.fitted.cost))
        self.known = {run.name: self._learn_host(run) for run in recording.learning}

    def around(self, run: Run) -> list[Run]:
        """The learning runs next to it: the one before, the one after."""
        before = [one for one in self._recording.learning if one.began_at < run.began_at]
        after = [one for one in self._recording.learning if one.began_at > run.began_at]
        return before[-1:] + after[:1]

    def predict(self, load: float, run: Run, sources: Sequence[Run], seed: int) -> Predicted:
        """The run at that share of the capacity, by these learning runs: ways are drawn from all, the host goes from
        what it was in the first to what it was in the last."""
        ways = self._ways(sources).draw([load] * len(run.seen), seed)
        first, last = (added_at(self.known[one.name], load) for one in (sources[0], sources[-1]))
        host = LearnedHost(self.beside, lambda now: first.towards(last, min(1.0, now / run.end_s)), seed)
        return Predicted(self._simulate(run, host, ways), ways)

    def _ways(self, sources: Iterable[Run]) -> Ways:
        return Ways.of(one for run in sources for one in self._learned[run.name])

    def _remembering(self) -> dict[str, Doors]:
        """By a run's name, the gateways as they are when it begins: they have seen all runs before it."""
        recording = self._recording
        runs = sorted([*recording.learning, *recording.runs.values()], key=lambda run: run.began_at)
        num_gateways = 1 + max(one.gateway for run in runs for one in run.requests)
        doors = Doors(self.policy, self.fitted.capacity, num_gateways, recording.capacity.began_at)
        found = {}
        for before, run in zip([recording.capacity, *runs], runs, strict=False):
            doors.recall(before)
            found[run.name] = deepcopy(doors)
        return found

    def _learn_host(self, run: Run) -> Known:
        """What the host added at each rate of this learning run."""
        ways, least_s = self._ways([run]).own(run), self.beside.base_s + self.fitted.cost.base_s

        def simulated(host: LearnedHost) -> Sequence[Means]:
            return means_of(simulated_times(run, self._simulate(run, host, ways), ways), run)

        means = means_of(measured_times(self._recording, run), run)
        parts = [Part(share, mean, least_s) for share, mean in zip(run.shares, means, strict=True)]
        known = learn_host(self.beside, parts, run.part_of, simulated)
        return evened(known, self.beside, full_steps(self._recording, run, self.fitted.cost))

    def _simulate(self, run: Run, host: LearnedHost, ways: Sequence[Way]) -> list[Outcome]:
        return simulate(run, self.policy, self.fitted, host, deepcopy(self._doors[run.name]), ways)


def known_parts(recording: Recording, one: Seen) -> list[float] | None:
    """The gateway's and the worker's own times of a request (`PARTS`), if all are known."""
    known = [part for part in recording.parts.get(one.request_id, ()) if part is not None]
    return known if len(known) == len(PARTS) else None


def learned(recording: Recording, run: Run) -> list[Learned]:
    """A warm learning run's first tokens beside the worker; requests of which a part is unknown are left out."""
    times = [one for one in measured_times(recording, run) if one.sent_s >= run.warm_s]
    share_late, means = lateness(times, run), mean_befores(times, run)
    found = []
    for one in times:
        part, share = run.part_of(one.sent_s), run.share_at(one.sent_s)
        late_s = share_late * (one.before_s - means[part]) if share < 1.0 else 0.0
        way = Way(one.before_s, one.after_s, max(-one.before_s, late_s))
        found.append(Learned(one.number, share, way))
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


def lateness(times: Sequence[Times], run: Run) -> float:
    """By how much longer a request waits from queued to its first token for each second that it was late before: what
    keeps a gateway waiting keeps the worker's news waiting too. One slope for all parts in which slots were free; where
    they are not, slots are what requests wait for."""
    means, both, square = mean_befores(times, run), 0.0, 0.0
    for part, share in enumerate(run.shares):
        mine = [one for one in times if run.part_of(one.sent_s) == part and share < 1.0]
        mean_first_s = fmean(one.first_s for one in mine) if mine else 0.0
        both += sum((one.before_s - means[part]) * (one.first_s - mean_first_s) for one in mine)
        square += sum((one.before_s - means[part]) ** 2 for one in mine)
    return max(0.0, both / square) if square else 0.0


def mean_befores(times: Sequence[Times], run: Run) -> list[float]:
    """How long requests took until they were queued, by part."""
    found: list[list[float]] = [[] for _ in run.shares]
    for one in times:
        found[run.part_of(one.sent_s)].append(one.before_s)
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


def means_of(times: Sequence[Times], run: Run) -> list[Means]:
    """By part of a learning run. First tokens: of the most urgent class. Further ones: of all answers that lie in the
    part as a whole."""
    found = []
    for part in range(len(run.shares)):
        begins_s, ends_s = run.part(part, SETTLING_S)
        mine = [one for one in times if begins_s <= one.sent_s < ends_s]
        firsts = [one.first_s for one in mine if one.class_id == MOST_URGENT]
        whole = [one for one in mine if one.end_s <= ends_s]
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


def free_steps(recording: Recording, cost: StepCost) -> list[list[MeanStep]]:
    """Of the learning runs' parts in which less came than the system can do: when slots are full, more than their rows
    makes steps longer."""
    return [
        mean_steps(recording, run, cost, *run.part(part))
        for run in recording.learning
        for part, share in enumerate(run.shares)
        if share < 1.0
    ]


def full_steps(recording: Recording, run: Run, cost: StepCost) -> dict[float, list[MeanStep]]:
    """While all slots were full: of a learning run by share; settled ones. Where it is the only one, of the capacity
    run too, or seconds on one side of a load would tell of it alone."""
    capacity, found = recording.capacity, dict[float, list[MeanStep]]()
    if len(recording.learning) == 1:
        found[1.0] = mean_steps(recording, capacity, cost, capacity.warm_s, capacity.end_s)
    for part, share in enumerate(run.shares):
        if share > 1.0:
            found[share] = mean_steps(recording, run, cost, *run.part(part, SETTLING_S))
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
