"""The event loop of simulated time: arrivals, claims, steps. Everything happens in one total order.

One worker claims without delay, unless it is `mirrored`. With several, each mirrors the queue: an arrival, a claim's
answer and the news of another's claim all take `network_s` to travel, so that races are lost as they are in a fleet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol

from scheduler_worker.core.plan import Applied, Event, Finished, StepPlan, StepResult
from scheduler_worker.core.scheduler import SchedulerVerbs
from scheduler_worker.core.sequence import FinishReason, SequenceHeader
from scheduler_worker.protocol.mirrors import FirstOfMirrors
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.device import answer
from scheduler_worker.sim.host import Host
from scheduler_worker.sim.trace import Request

POLL_S: Final = 0.001
STALL_S: Final = 120.0


class SimulationStalled(RuntimeError):
    """A scheduler had work and planned nothing for two simulated minutes: a defect of that scheduler."""


@dataclass(slots=True)
class Outcome:
    """What became of one request; times on the simulated clock. `claimed_at` is known where claims take time."""

    request: Request
    arrived_at: float
    refused: bool = False
    retry_after_s: float | None = None
    claimed_at: float | None = None
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    num_output_tokens: int = 0
    num_computed_tokens: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first token."""
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def wait_s(self) -> float | None:
        """Arrival to the first scheduled chunk."""
        return None if self.first_scheduled_at is None else self.first_scheduled_at - self.arrived_at

    @property
    def e2e_s(self) -> float | None:
        """Arrival to last token."""
        return None if self.finished_at is None else self.finished_at - self.arrived_at

    @property
    def tpot_s(self) -> float | None:
        """(E2E − TTFT) / (output tokens − 1); None for fewer than two tokens."""
        if self.finished_at is None or self.first_token_at is None or self.num_output_tokens < 2:
            return None
        return (self.finished_at - self.first_token_at) / (self.num_output_tokens - 1)


@dataclass(slots=True)
class Sample:
    """Queue depths by class at an instant, for the plot."""

    at: float
    waiting: dict[str, int]


@dataclass(slots=True)
class History:
    """Everything a report needs. `recomputed_tokens` counts positions that were computed more than once."""

    outcomes: list[Outcome]
    makespan_s: float = 0.0
    busy_s: float = 0.0
    num_steps: int = 0
    num_restarts: int = 0
    recomputed_tokens: int = 0
    swapped_blocks: int = 0
    lost_races: int = 0
    events: list[Event] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


class Admission(Protocol):
    """The gateway's question, answered by the core's code: None when accepted, else seconds to come back."""

    def refusal(self, header: SequenceHeader, now: float) -> float | None: ...
    def claimed(self, seq_ids: Iterable[str]) -> None: ...
    def ended(self, seq_id: str, class_id: str, num_output_tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. `known_lengths` gives the scheduler the true output length as `max_tokens`; with `mirrored` the
    queue is as far from a single worker as from several. `host` says more than `network_s` does, and replaces it."""

    in_flight: int = 1
    known_lengths: bool = False
    max_tokens: int = 1024
    network_s: float = 0.0005
    host: Host | None = None
    mirrored: bool = False
    seed: int = 0
    keep_events: bool = True
    sample_every_s: float = 1.0


Progress = Callable[[int, int], None]
Observer = Callable[[Applied], None]


class Simulation:
    """Runs a workload through one scheduler per worker until every accepted request has ended."""

    def __init__(
        self,
        requests: Sequence[Request],
        schedulers: Sequence[SchedulerVerbs],
        costs: Sequence[StepCost],
        options: Options,
        admission: Admission | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._options = options
        self.host = options.host or Host(options.network_s)
        self._admission = admission
        self._observer = observer
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._claimed: dict[str, int] = {}
        self._mirrors = FirstOfMirrors(max_remembered=len(requests))
        self._noise = Random(f"noise-{options.seed}")
        self.now = 0.0
        self.history = History([Outcome(one, one.arrival_s) for one in requests])
        self._by_id = {_seq_id(index): outcome for index, outcome in enumerate(self.history.outcomes)}
        self._num_open = len(requests)
        self._waiting: dict[str, int] = {}
        self._next_sample = 0.0
        self._workers = [_Worker(self, index, one, costs[index]) for index, one in enumerate(schedulers)]

    def run(self, progress: Progress | None = None) -> History:
        """The whole history; raises `SimulationStalled` if a scheduler stops making progress."""
        for index, outcome in enumerate(self.history.outcomes):
            self.at(outcome.arrived_at, self._arrive, index)
        total = len(self.history.outcomes)
        while self._num_open and self._events:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
            if progress is not None and self._order % 4096 == 0:
                progress(total - self._num_open, total)
        if self._num_open:
            raise SimulationStalled(f"{self._num_open} requests never ended")
        self.history.makespan_s = self.now
        if progress is not None:
            progress(total, total)
        return self.history

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do this later; equal times in the order they were asked for."""
        self._order += 1
        heapq.heappush(self._events, (when, self._order, action, arguments))

    def _arrive(self, index: int) -> None:
        outcome = self.history.outcomes[index]
        header = self._header(index, outcome.request)
        retry = self._admission.refusal(header, self.now) if self._admission else None
        if retry is not None:
            outcome.retry_after_s = retry
            self._refuse(outcome)
            return
        if outcome.request.enqueue_s:
            self.at(self.now + outcome.request.enqueue_s, self._enqueue, header)
        else:
            self._enqueue(header)

    def _enqueue(self, header: SequenceHeader) -> None:
        self._waiting[header.class_id] = self._waiting.get(header.class_id, 0) + 1
        self._sample()
        for worker in self._workers:
            delay = 0.0 if self.alone else self.host.news_s(self.now)
            if delay:
                self.at(self.now + delay, worker.hear, header)
            else:
                worker.hear(header)

    def _header(self, index: int, request: Request) -> SequenceHeader:
        known = self._options.known_lengths
        return SequenceHeader(
            seq_id=_seq_id(index),
            class_id=request.class_id,
            tenant=request.tenant,
            arrival_number=index + 1,
            arrived_at=self.now,
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.num_output_tokens
            if known
            else max(request.max_tokens or self._options.max_tokens, request.num_output_tokens),
            block_hashes=request.block_hashes,
            tenant_weight=request.tenant_weight,
        )

    def _end(self, outcome: Outcome, ended: Finished) -> None:
        if self._admission is not None:
            self._admission.ended(ended.seq_id, ended.class_id, ended.num_generated_tokens)
        if ended.reason is FinishReason.FAILED:
            if outcome.first_scheduled_at is None:
                self._waiting[outcome.request.class_id] -= 1
            self._refuse(outcome)
            return
        outcome.finished_at = self.now
        self._num_open -= 1

    def _refuse(self, outcome: Outcome) -> None:
        outcome.refused = True
        self._num_open -= 1

    def _sample(self) -> None:
        if self.now >= self._next_sample:
            self.history.samples.append(Sample(self.now, dict(self._waiting)))
            self._next_sample = self.now + self._options.sample_every_s

    def step_s(self, cost: StepCost, plan: StepPlan) -> float:
        """The truth about a plan's duration, with the device's noise."""
        swapped = sum(len(one.blocks) for one in plan.swap_outs) + sum(
            len(one.blocks) for one in plan.swap_ins
        )
        self.history.swapped_blocks += swapped
        seconds = cost.seconds(plan.shape, swapped)
        return seconds * max(0.1, self._noise.gauss(1.0, cost.noise)) if cost.noise else seconds

    def note_begun(self, plan: StepPlan) -> None:
        """Fold a plan: who was scheduled for the first time, what is computed again."""
        for chunk in plan.chunks:
            outcome = self._by_id[chunk.seq_id]
            if outcome.first_scheduled_at is None:
                outcome.first_scheduled_at = self.now
                self._waiting[outcome.request.class_id] -= 1
            elif chunk.first:
                self.history.num_restarts += 1
            end = chunk.start + chunk.num_tokens
            again = min(end, outcome.num_computed_tokens) - chunk.start
            self.history.recomputed_tokens += max(0, again)
            outcome.num_computed_tokens = max(end, outcome.num_computed_tokens)
        self.history.num_restarts += len(plan.swap_ins)
        self.note_events(plan.events)

    def note_events(self, events: Sequence[Event]) -> None:
        """Keep what was decided."""
        if self._options.keep_events:
            is_news = self._mirrors.is_news
            self.history.events.extend([one for one in events if is_news(one.kind, one.seq_id, one.numbers)])

    def note_applied(self, applied: Applied) -> None:
        """Fold an outcome into the requests' histories."""
        self.note_events(applied.events)
        for seq_id, num_tokens in applied.tokens.rows if applied.tokens else ():
            outcome = self._by_id[seq_id]
            if outcome.first_token_at is None:
                outcome.first_token_at = self.now
            outcome.num_output_tokens += num_tokens
        for ended in applied.finished:
            if ended.reason is not FinishReason.WITHDRAWN:
                self._end(self._by_id[ended.seq_id], ended)
        if self._observer is not None:
            self._observer(applied)

    def note_claimed(self, seq_ids: tuple[str, ...]) -> None:
        """The gateway sees in Redis that these wait no more."""
        if self._admission is not None:
            self._admission.claimed(seq_ids)

    def result(self, plan: StepPlan, duration_s: float) -> StepResult:
        """What the model would have said: a token for each chunk that samples, a stop at the true length."""
        return answer(plan, self._stops, duration_s)

    def _stops(self, seq_id: str) -> bool:
        outcome = self._by_id[seq_id]
        return outcome.num_output_tokens + 1 >= outcome.request.num_output_tokens

    def race(self, worker: _Worker, seq_ids: tuple[str, ...]) -> None:
        """The claim as Redis decides it, in the order in which claims arrive there."""
        won = tuple(one for one in seq_ids if self._claimed.setdefault(one, worker.index) == worker.index)
        lost = tuple(one for one in seq_ids if one not in won)
        self.history.lost_races += len(lost)
        for seq_id in won:
            self._by_id[seq_id].claimed_at = self.now
        self.note_claimed(won)
        self.at(self.now + self.host.answer_s(self.now), worker.answered, won, lost)
        for other in self._workers:
            if other is not worker:
                self.at(self.now + self.host.news_s(self.now), other.withdrawn, won)

    @property
    def alone(self) -> bool:
        """Whether claims need no race."""
        return len(self._workers) == 1 and not self._options.mirrored

    @property
    def depth(self) -> int:
        """Steps that may be in flight."""
        return self._options.in_flight


class _Worker:
    """One scheduler and one simulated device."""

    def __init__(self, simulation: Simulation, index: int, scheduler: SchedulerVerbs, cost: StepCost) -> None:
        self.index = index
        self._simulation = simulation
        self._scheduler = scheduler
        self._cost = cost
        self._outstanding = 0
        self._device_free_at = 0.0
        self._asking: set[str] = set()
        self._polling = False
        self._progress_at = 0.0

    def hear(self, header: SequenceHeader) -> None:
        """The mirror shows a new header."""
        if header.seq_id not in self._simulation._claimed or self._simulation.alone:
            self._simulation.note_applied(self._scheduler.add(header, self._simulation.now))
        self.kick()

    def withdrawn(self, seq_ids: tuple[str, ...]) -> None:
        """Another worker has them."""
        self._scheduler.withdraw(seq_ids, self._simulation.now)

    def answered(self, won: tuple[str, ...], lost: tuple[str, ...]) -> None:
        """The claim's answer is back."""
        self._asking.difference_update(won, lost)
        self._scheduler.claim(won, self._simulation.now)
        self._scheduler.withdraw(lost, self._simulation.now)
        self.kick()

    def kick(self) -> None:
        """Claim what would start, then launch as many steps as may be in flight."""
        simulation, now = self._simulation, self._simulation.now
        if self._outstanding >= simulation.depth:
            return
        self._claim(now)
        while self._outstanding < simulation.depth and (plan := self._scheduler.plan_step(now)) is not None:
            self._launch(plan, now)
        if not self._outstanding and not self._polling and self._scheduler.has_work():
            self._poll(now)

    def _claim(self, now: float) -> None:
        candidates = tuple(one for one in self._scheduler.claim_candidates(now) if one not in self._asking)
        if not candidates:
            return
        if self._simulation.alone:
            self._scheduler.claim(candidates, now)
            self._simulation.note_claimed(candidates)
            return
        self._asking.update(candidates)
        self._simulation.at(now + self._simulation.host.claim_s(now), self._simulation.race, self, candidates)

    def _launch(self, plan: StepPlan, now: float) -> None:
        self._scheduler.begin(plan)
        self._simulation.note_begun(plan)
        start = max(now, self._device_free_at)
        duration_s = self._simulation.step_s(self._cost, plan)
        beside_s = self._simulation.host.beside_s(now, plan.shape.num_decode_rows)
        self._device_free_at = start + duration_s + beside_s
        self._outstanding += 1
        self._progress_at = now
        self._simulation.at(self._device_free_at, self._complete, plan, duration_s)

    def _complete(self, plan: StepPlan, duration_s: float) -> None:
        simulation = self._simulation
        self._outstanding -= 1
        simulation.history.busy_s += duration_s
        simulation.history.num_steps += 1
        applied = self._scheduler.apply_result(simulation.result(plan, duration_s), simulation.now)
        simulation.note_applied(applied)
        self.kick()

    def _poll(self, now: float) -> None:
        """Work that waits for time alone (a residency, a claim under way): look again soon."""
        if now - self._progress_at > STALL_S and not self._asking:
            raise SimulationStalled(
                f"worker {self.index} had work but planned nothing for {STALL_S:g} s at {now:.3f} s"
            )
        self._polling = True
        self._simulation.at(now + POLL_S, self._polled)

    def _polled(self) -> None:
        self._polling = False
        self.kick()


def _seq_id(index: int) -> str:
    return f"r{index:06d}"
