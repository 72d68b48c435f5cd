"""Booking: a plan becomes so. Slots, blocks, charges and placeholders change here, and nowhere else while a step is
under way. Uses only what the plan says, so that a logged plan can be replayed."""

from __future__ import annotations

from typing import Final

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import Chunk, EventKind, StepPlan, SwapIn
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import InFlight, State
from scheduler_worker.core.step_builder import start_cost

REMEMBERED: Final = (EventKind.OUT_OF_BLOCKS, EventKind.NOT_PREEMPTED)


class StalePlan(RuntimeError):
    """A plan that does not follow the last begun one, or names sequences that have gone since it was made."""


def book(state: State, plan: StepPlan) -> None:
    """Begin `plan`; raises `StalePlan` when the state has moved on since it was planned."""
    chunks = StepChunks.of(plan)
    _check(state, plan, chunks)
    flying = InFlight(plan, chunks, state.tightest_tpot_s if state.lockstep.classes else None)
    _leave_rows(state, plan)
    _take_out(state, plan)
    state.in_flight.append(flying)
    state.step = state.lockstep.step = state.ledger.step = plan.step
    cost = len(state.lockstep) * state.ledger.row_cost
    _grow(state, chunks)
    _close(state, flying, state.lockstep.ending(plan.step))
    swap_ins = {one.seq_id: one for one in plan.swap_ins}
    for chunk in chunks.others:
        cost += _book_chunk(state, flying, chunk, swap_ins.get(chunk.seq_id))
    flying.num_rows = state.num_running + len(flying.closing)
    state.ledger.accrue_tier_credit(cost, state.policy.fairness.max_lead_tokens)
    state.notices.clear()


def _check(state: State, plan: StepPlan, chunks: StepChunks) -> None:
    if plan.step != state.step + 1:
        raise StalePlan(f"step {plan.step} cannot follow step {state.step}: begin plans in the order they were made")
    if plan.num_lockstep != len(state.lockstep) - _num_absent(state, plan):
        raise StalePlan(f"step {plan.step} was planned for other decoding sequences: plan again")
    for chunk in chunks.others:
        if chunk.seq_id not in state.ready.sequences and chunk.seq_id not in state.catching_up:
            raise StalePlan(f"step {plan.step} names {chunk.seq_id}, which cannot run any more: plan again")


def _num_absent(state: State, plan: StepPlan) -> int:
    rows = state.lockstep.rows
    leavers = (*plan.stalled, *plan.yielding, *plan.evicted, *(one.seq_id for one in plan.swap_outs))
    return sum(1 for seq_id in leavers if seq_id in rows)


def _leave_rows(state: State, plan: StepPlan) -> None:
    for seq_id in plan.stalled:
        sequence = state.sequences[seq_id]
        state.stop_running(sequence)
        state.catching_up[seq_id] = sequence
    for seq_id in plan.yielding:
        sequence = state.sequences[seq_id]
        _park(state, sequence, plan)
        state.vacating[seq_id] = sequence
    for seq_id in plan.bypassed:
        state.sequences[seq_id].num_bypasses += 1
    for event in plan.events:
        if event.kind in REMEMBERED and event.seq_id in state.sequences:
            state.sequences[event.seq_id].told += ((event.kind, event.reason),)
        if "tier_cost" in event.numbers:
            state.ledger.classes[event.class_id].tier_credit -= float(event.numbers["tier_cost"])


def _park(state: State, sequence: Sequence, plan: StepPlan) -> None:
    state.stop_running(sequence)
    sequence.move(SequenceState.PARKED)
    sequence.parked_at = plan.planned_at
    event = next((one for one in plan.events if one.seq_id == sequence.seq_id), None)
    sequence.parked_by_memory = event is None or event.reason == "preempted_by_memory"
    sequence.num_preemptions += not sequence.parked_by_memory


def _take_out(state: State, plan: StepPlan) -> None:
    """Victims lose slot and blocks, with a checkpoint or without, and wait for their return."""
    for copy in plan.swap_outs:
        sequence = state.sequences[copy.seq_id]
        sequence.checkpoint_blocks = len(copy.blocks)
        state.num_checkpoint_blocks += len(copy.blocks)
        _make_ready(state, sequence, plan)
    for seq_id in plan.evicted:
        evicted = state.sequences.get(seq_id)
        if evicted is not None and evicted.slot is not None:
            _make_ready(state, evicted, plan)


def _make_ready(state: State, sequence: Sequence, plan: StepPlan) -> None:
    if sequence.state is SequenceState.RUNNING:
        _park(state, sequence, plan)
    state.vacating.pop(sequence.seq_id, None)
    await_return(state, sequence)


def await_return(state: State, sequence: Sequence) -> None:
    """A parked sequence without slot and blocks waits in line by its arrival."""
    state.vacate(sequence)
    if sequence.checkpoint_blocks == 0:
        sequence.num_computed = 0
        sequence.num_registered = 0
    sequence.needs_table = True
    sequence.num_bypasses = 0
    state.set_deadlines(sequence)
    sequence.is_bound_settled = False
    state.ready.add(sequence)
    state.bounds.watch(sequence)


def _grow(state: State, chunks: StepChunks) -> None:
    seq_ids, rows = chunks.decodes.seq_ids, state.lockstep.rows
    grown = [(rows[seq_ids[place]], blocks) for place, blocks in chunks.growth.items()]
    state.hold_all(grown)
    state.lockstep.grow(grown)


def _close(state: State, flying: InFlight, rows: list[Sequence]) -> None:
    for sequence in rows:
        state.stop_running(sequence)
        state.closing[sequence.seq_id] = sequence
        flying.closing.append(sequence)


def _book_chunk(state: State, flying: InFlight, chunk: Chunk, swap_in: SwapIn | None) -> float:
    """Book one explicit chunk; returns what it was charged."""
    sequence = state.sequences[chunk.seq_id]
    cost = 0.0
    if chunk.seq_id in state.ready.sequences:
        cost = _start(state, sequence, chunk, swap_in, flying.plan.planned_at)
    else:
        held = len(sequence.blocks) if chunk.first else 0
        state.hold(sequence, chunk.new_blocks[held:])
    sequence.needs_table = False
    sequence.num_computed = chunk.start + chunk.num_tokens
    sequence.last_step = state.step
    if chunk.samples:
        cost += _book_token(state, flying, sequence)
    return cost


def _start(state: State, sequence: Sequence, chunk: Chunk, swap_in: SwapIn | None, now: float) -> float:
    state.ready.remove(sequence)
    state.promise(sequence, state.blocks_promised_to(sequence))
    num_hits = 0 if swap_in else chunk.start // state.capacity.block_size
    cost = start_cost(state, sequence, 0 if swap_in else chunk.start)
    state.hold(sequence, (*swap_in.blocks, *chunk.new_blocks) if swap_in else chunk.new_blocks, num_hits)
    state.drop_checkpoint(sequence)
    state.free_slots.remove(chunk.slot)
    sequence.slot = chunk.slot
    sequence.move(SequenceState.RUNNING)
    state.catching_up[sequence.seq_id] = sequence
    _note_start(sequence, num_hits, chunk, now)
    state.ledger.charge(sequence, cost)
    sequence.is_charged = True
    return cost


def _note_start(sequence: Sequence, num_hits: int, chunk: Chunk, now: float) -> None:
    sequence.is_bound_settled = True
    sequence.resident_since = now
    sequence.num_registered = max(sequence.num_registered, num_hits)
    if sequence.parked_at is not None:
        sequence.parked_s += now - sequence.parked_at
        sequence.parked_at = None
    if sequence.first_scheduled_at is None:
        sequence.first_scheduled_at = now
        sequence.num_cached_tokens = chunk.start


def _book_token(state: State, flying: InFlight, sequence: Sequence) -> float:
    """A placeholder for the token that the step samples; from the next step on the sequence decodes in lockstep."""
    applied = state.lockstep.applied
    sequence.num_sampled += 1
    sequence.pending = [*(step for step in sequence.pending if step > applied), state.step]
    del state.catching_up[sequence.seq_id]
    state.ledger.charge(sequence, state.ledger.row_cost)
    if sequence.num_sampled >= sequence.max_tokens:
        state.closing[sequence.seq_id] = sequence
        flying.closing.append(sequence)
    else:
        state.lockstep.join(sequence)
        state.ledger.join(sequence, 1)
    return state.ledger.row_cost
