"""The scheduler's verbs. The core decides; whoever calls it does the rest.

A worker's step:

    candidates = scheduler.claim_candidates(now)      # who would start within two steps
    scheduler.claim(won, now); scheduler.withdraw(lost, now)
    plan = scheduler.plan_step(now)                    # reads only
    scheduler.begin(plan)                              # books slots, blocks, charges, placeholders
    applied = scheduler.apply_result(result, now)      # oldest plan first

`now` is in seconds and never goes back. Nothing here blocks, reads a clock or draws a random number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from scheduler_worker.core.applying import BECAUSE, Applying, fail_step, unstick
from scheduler_worker.core.booking import book
from scheduler_worker.core.claiming import claim_candidates
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import (
    Applied,
    Capacity,
    Event,
    EventKind,
    Finished,
    Reason,
    Snapshot,
    StepPlan,
    StepResult,
)
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.repolicing import set_policy
from scheduler_worker.core.sequence import FinishReason, Sequence, SequenceHeader, SequenceState
from scheduler_worker.core.state import State
from scheduler_worker.core.step_builder import StepBuilder
from scheduler_worker.core.views import snapshot


class SchedulerVerbs(Protocol):
    """What the worker, the simulator and the tests call. `Scheduler(policy, capacity, …)` implements it."""

    def add(self, header: SequenceHeader, now: float) -> Applied:
        """A request waits. Idempotent by `seq_id`; a header with a higher attempt replaces the older one.

        One that can never run here (longer than the context, more blocks than there are) ends at once, failed.
        """

    def withdraw(self, seq_ids: Iterable[str], now: float) -> Applied:
        """Sequences that another worker claimed: waiting ones in silence, those that were ours with an event.
        Unknown ids are ignored."""

    def cancel(self, seq_id: str, now: float) -> Applied:
        """End a sequence in any state; what is in flight for it is dropped. Unknown ids are ignored."""

    def claim_candidates(self, now: float) -> tuple[str, ...]:
        """Waiting sequences that would start within two steps, counting what preemption could take; best first."""

    def claim(self, seq_ids: Iterable[str], now: float) -> None:
        """These are ours; `plan_step` may start them."""

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to run or too many steps are in flight. Reads only."""

    def begin(self, plan: StepPlan) -> None:
        """Book the plan. Plans are begun in the order they were made, each before the next is planned."""

    def apply_result(self, result: StepResult, now: float) -> Applied:
        """Take the outcome of the oldest begun plan."""

    def fail_step(self, now: float) -> Applied:
        """The device ran out of memory: unbook all begun plans and shrink the batch limit."""

    def set_policy(self, policy: Policy, version: int, now: float) -> Applied:
        """Rules from the next step on. No sequence is lost."""

    def snapshot(self, now: float) -> Snapshot:
        """What telemetry shows."""

    def has_work(self) -> bool:
        """Whether any claimed, running or parked sequence could make progress."""


class Scheduler:
    """The verbs over one `State`. `cost_model` is kept and taught; None starts from a prior."""

    def __init__(
        self,
        policy: Policy,
        capacity: Capacity,
        *,
        cost_model: CostModel | None = None,
        policy_version: int = 0,
    ) -> None:
        self.state = State(policy, capacity, cost_model or CostModel(), policy_version)

    @property
    def cost_model(self) -> CostModel:
        """What this worker has learned about its steps."""
        return self.state.cost_model

    def add(self, header: SequenceHeader, now: float) -> Applied:
        state = self.state
        known = state.sequences.get(header.seq_id)
        finished: list[Finished] = []
        if known is not None:
            if header.attempt <= known.header.attempt:
                return Applied()
            finished.append(state.end(known, FinishReason.WITHDRAWN, now))
        released = state.release_ended()
        if any(one.seq_id == header.seq_id for one in state.limbo):
            state.returning[header.seq_id] = header
            return Applied(finished=tuple(finished))
        added = self._enter(header, now)
        names = tuple(one.seq_id for one in released if one.seq_id != header.seq_id)
        return replace(added, finished=(*finished, *added.finished), released=(*names, *added.released))

    def _enter(self, header: SequenceHeader, now: float) -> Applied:
        state = self.state
        max_tokens = min(header.max_tokens, state.capacity.max_model_len - header.num_prompt_tokens)
        sequence = Sequence(header, max_tokens)
        sequence.class_id = state.resolve(header.class_id).id
        sequence.hashes = list(header.block_hashes)
        sequence.is_charged = header.num_generated_tokens > 0
        state.sequences[header.seq_id] = sequence
        state.ledger.enter(sequence)
        state.set_deadlines(sequence)
        state.waiting.add(sequence)
        state.bounds.entered(sequence, state.policy, state.work_of(sequence), state.ledger.total_service(), now)
        if (error := self._why_never(sequence)) is not None:
            return self._end(sequence, FinishReason.FAILED, now, Reason.TOO_LONG, error)
        if sequence.num_sampled >= sequence.max_tokens:
            return self._end(sequence, FinishReason.LENGTH, now, Reason.LENGTH)
        reason = Reason.REQUEUED if header.attempt else Reason.ARRIVED
        numbers = {"num_prompt_tokens": header.num_prompt_tokens, "attempt": header.attempt}
        if header.attempt:
            numbers["num_tokens"] = sequence.num_sampled
        return Applied(events=(_event(now, EventKind.QUEUED, reason, sequence, numbers),))

    def _why_never(self, sequence: Sequence) -> str | None:
        capacity = self.state.capacity
        num_prompt = sequence.num_prompt_tokens
        if num_prompt < 1:
            return "the prompt is empty; send at least one token"
        if num_prompt >= capacity.max_model_len:
            return f"the prompt has {num_prompt} tokens; the context of {capacity.max_model_len} leaves no room"
        needed = self.state.pool.blocks_for(num_prompt + sequence.max_tokens - 1)
        if needed > capacity.num_blocks:
            return (
                f"prompt and answer need {needed} KV blocks and this worker has {capacity.num_blocks}; "
                "ask for fewer tokens"
            )
        return None

    def withdraw(self, seq_ids: Iterable[str], now: float) -> Applied:
        return self._end_all(seq_ids, FinishReason.WITHDRAWN, now)

    def cancel(self, seq_id: str, now: float) -> Applied:
        return self._end_all((seq_id,), FinishReason.CANCELLED, now)

    def _end_all(self, seq_ids: Iterable[str], reason: FinishReason, now: float) -> Applied:
        state = self.state
        events: list[Event] = []
        finished: list[Finished] = []
        for seq_id in seq_ids:
            state.returning.pop(seq_id, None)
            sequence = state.sequences.get(seq_id)
            if sequence is None:
                continue
            is_told = reason is FinishReason.CANCELLED or sequence.state is not SequenceState.WAITING
            ended = state.end(sequence, reason, now)
            finished.append(ended)
            if is_told:
                numbers = {"num_tokens": ended.num_generated_tokens}
                events.append(_event(now, EventKind.FINISHED, BECAUSE[reason], sequence, numbers))
        released = tuple(one.seq_id for one in state.release_ended())
        unstick(state)
        return Applied(tuple(events), None, tuple(finished), released)

    def _end(
        self, sequence: Sequence, reason: FinishReason, now: float, why: Reason, error: str | None = None
    ) -> Applied:
        kind = EventKind.REJECTED if reason is FinishReason.FAILED else EventKind.FINISHED
        numbers: dict[str, float | int | str] = {
            "num_prompt_tokens": sequence.num_prompt_tokens,
            "num_tokens": sequence.num_sampled,
        }
        if error is not None:
            numbers |= {"error": error, "max_prompt_tokens": self.state.capacity.max_model_len - 1}
        event = _event(now, kind, why, sequence, numbers)
        finished = self.state.end(sequence, reason, now, error)
        released = tuple(one.seq_id for one in self.state.release_ended())
        return Applied((event,), None, (finished,), released)

    def claim_candidates(self, now: float) -> tuple[str, ...]:
        self.state.waiting.advance(now)
        self.state.ready.advance(now)
        return claim_candidates(self.state, now)

    def claim(self, seq_ids: Iterable[str], now: float) -> None:
        state = self.state
        for seq_id in seq_ids:
            sequence = state.waiting.sequences.get(seq_id)
            if sequence is not None:
                state.waiting.remove(sequence)
                sequence.move(SequenceState.CLAIMED)
                state.ready.add(sequence)

    def plan_step(self, now: float) -> StepPlan | None:
        return StepBuilder(self.state, now).build()

    def begin(self, plan: StepPlan) -> None:
        book(self.state, plan)

    def apply_result(self, result: StepResult, now: float) -> Applied:
        return self._take_back(Applying(self.state, result, now).apply(), now)

    def fail_step(self, now: float) -> Applied:
        return self._take_back(fail_step(self.state, now), now)

    def _take_back(self, applied: Applied, now: float) -> Applied:
        """Headers that waited for an older attempt of theirs to leave the device."""
        for seq_id in applied.released if self.state.returning else ():
            header = self.state.returning.pop(seq_id, None)
            if header is not None:
                added = self._enter(header, now)
                applied = replace(
                    applied,
                    events=(*applied.events, *added.events),
                    finished=(*applied.finished, *added.finished),
                )
        return applied

    def set_policy(self, policy: Policy, version: int, now: float) -> Applied:
        return set_policy(self.state, policy, version, now)

    def snapshot(self, now: float) -> Snapshot:
        return snapshot(self.state, now)

    def has_work(self) -> bool:
        state = self.state
        return bool(state.num_running or state.closing or state.vacating or len(state.ready))


def _event(
    now: float, kind: EventKind, reason: Reason, sequence: Sequence, numbers: Mapping[str, float | int | str]
) -> Event:
    return Event(now, kind, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers)
