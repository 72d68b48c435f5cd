"""A new policy under running sequences: rules from the next step on, nobody lost, the order still total."""

from __future__ import annotations

from scheduler_worker.core.plan import Applied, Event, EventKind, Reason
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.sequence import Sequence
from scheduler_worker.core.state import State


def set_policy(state: State, policy: Policy, version: int, now: float) -> Applied:
    """Move every sequence to the class that serves it now and give it that class's deadlines."""
    before = state.policy_version
    lines = [(queues, queues.take_all()) for queues in (state.waiting, state.ready)]
    state.use_policy(policy, version)
    moved = [one for one in state.sequences.values() if _move(state, one)]
    for queues, sequences in lines:
        for sequence in sequences:
            sequence.is_late = sequence.latest_start_at < now
            queues.add(sequence)
    state.bounds.watch_all(one for _, sequences in lines for one in sequences)
    numbers: dict[str, float | int | str] = {"version": version, "before": before, "num_moved": len(moved)}
    return Applied(events=(Event(now, EventKind.POLICY_APPLIED, Reason.POLICY_PUBLISHED, numbers=numbers),))


def _move(state: State, sequence: Sequence) -> bool:
    """Resolve its class again; True when another class serves it from now on."""
    class_id = state.resolve(sequence.header.class_id).id
    is_moved = class_id != sequence.class_id
    if is_moved:
        decodes = sequence in state.lockstep
        if decodes:
            state.ledger.join(sequence, -1)
        state.ledger.leave(sequence)
        state.lockstep.change_class(sequence, class_id)
        state.ledger.enter(sequence)
        if decodes:
            state.ledger.join(sequence, 1)
    state.set_deadlines(sequence)
    return is_moved
