"""Applying: what a step came to becomes known. Tokens are counted, sequences end, blocks are freed, and the batch
limit and the cost model learn. Work is in proportion to what happened, beyond one look at each row."""

from __future__ import annotations

from itertools import compress, count
from operator import is_not
from typing import Final

from scheduler_worker.core.batch_limit import LimitChange
from scheduler_worker.core.booking import await_return
from scheduler_worker.core.chunks import Emitted
from scheduler_worker.core.plan import (
    Applied,
    Chunk,
    Event,
    EventKind,
    FilledBlock,
    Finished,
    Reason,
    RowResult,
    StepResult,
    TokensEmitted,
)
from scheduler_worker.core.preemption import last_in_line
from scheduler_worker.core.sequence import FinishReason, Sequence, SequenceState
from scheduler_worker.core.state import InFlight, State

BECAUSE: Final = {
    FinishReason.STOP: Reason.STOPPED,
    FinishReason.LENGTH: Reason.LENGTH,
    FinishReason.CANCELLED: Reason.CANCELLED,
    FinishReason.FAILED: Reason.FAILED,
    FinishReason.WITHDRAWN: Reason.CLAIMED_ELSEWHERE,
}
NUM_OBSERVED_EACH: Final = 256
OBSERVE_EVERY: Final = 4
MIN_STEP_TOKENS: Final = 16


class BadResult(ValueError):
    """A result that does not fit the oldest begun plan: a defect of the executor."""


class Applying:
    """One result being applied."""

    def __init__(self, state: State, result: StepResult, now: float) -> None:
        self._state = state
        self._result = result
        self._now = now
        self._flying, self._odd = _check(state, result)
        self._events: list[Event] = []
        self._finished: list[Finished] = []

    def apply(self) -> Applied:
        """Take the outcome in; returns what the shell must publish."""
        state, flying = self._state, self._flying
        state.in_flight.popleft()
        state.lockstep.applied = flying.plan.step
        emitted = self._count_tokens()
        self._note_progress()
        for filled in self._result.filled_blocks:
            self._register(filled)
        self._end_rows()
        self._learn()
        if state.unanswered:
            self._tell_unanswered()
        if late := state.bounds.passed(self._now):
            self._events.extend([state.missed_bound(one, self._now) for one in late])
        released = [one.seq_id for one in state.release_ended()]
        unstick(state)
        tokens = TokensEmitted(self._now, flying.plan.step, emitted) if emitted else None
        return Applied(tuple(self._events), tokens, tuple(self._finished), tuple(released))

    def _count_tokens(self) -> Emitted:
        """Decoding rows that went on as expected are said to have done so without a look at each."""
        seq_ids, dropped, rows = self._flying.chunks.decodes.seq_ids, self._flying.dropped, self._result.rows
        num_decodes = len(seq_ids)
        silent = {rows[index].seq_id for index in self._odd if index < num_decodes and not rows[index].num_new_tokens}
        if silent or dropped:
            seq_ids = tuple([one for one in seq_ids if one not in silent and one not in dropped])
        if len(rows) == num_decodes:
            return Emitted(seq_ids)
        others = [row[:2] for row in rows[num_decodes:] if row[1] and row[0] not in dropped]
        return Emitted(seq_ids, tuple(others))

    def _note_progress(self) -> None:
        """Rows that were not in lockstep: prompts whose blocks are full now, first tokens."""
        others = self._flying.chunks.others
        for chunk, row in zip(others, self._result.rows[-len(others) :], strict=True) if others else ():
            sequence = self._state.sequences.get(chunk.seq_id)
            if sequence is None or chunk.seq_id in self._flying.dropped or row.error is not None:
                continue
            if sequence.hashes:
                self._register_prompt(sequence, chunk)
            if row.num_new_tokens and sequence.first_token_at is None:
                sequence.first_token_at = self._now
                ttft_s = self._now - sequence.arrived_at
                self._event(EventKind.FIRST_TOKEN, Reason.TURN, sequence, {"ttft_s": ttft_s})

    def _register_prompt(self, sequence: Sequence, chunk: Chunk) -> None:
        size = self._state.capacity.block_size
        num_full = min((chunk.start + chunk.num_tokens) // size, len(sequence.hashes), len(sequence.blocks))
        for index in range(sequence.num_registered, num_full):
            self._state.pool.register(sequence.blocks[index], sequence.hashes[index])
        sequence.num_registered = max(sequence.num_registered, num_full)

    def _register(self, filled: FilledBlock) -> None:
        sequence = self._state.sequences.get(filled.seq_id)
        if sequence is None or filled.index >= len(sequence.blocks) or filled.seq_id in self._flying.dropped:
            return
        self._state.pool.register(sequence.blocks[filled.index], filled.block_hash)
        if filled.index == len(sequence.hashes):
            sequence.hashes.append(filled.block_hash)

    def _end_rows(self) -> None:
        for index in self._odd:
            row = self._result.rows[index]
            if (row.stopped or row.error is not None) and row.seq_id not in self._flying.dropped:
                reason = FinishReason.STOP if row.error is None else FinishReason.FAILED
                lacks_token = row.num_new_tokens == 0 and self._flying.chunks.at(index).samples
                self._end(self._state.sequences[row.seq_id], reason, row.error, int(lacks_token))
        for sequence in self._flying.closing:
            if sequence.state is not SequenceState.FINISHED:
                self._end(sequence, FinishReason.LENGTH, None, 0)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None, num_missing: int) -> None:
        state = self._state
        finished = state.end(sequence, reason, self._now, error, num_missing)
        if reason is not FinishReason.FAILED:
            num_tokens = finished.num_generated_tokens
            state.output_lengths(sequence.class_id).observe(num_tokens, num_tokens >= sequence.max_tokens)
        self._finished.append(finished)
        numbers: dict[str, float | int | str] = {"num_tokens": finished.num_generated_tokens}
        if error is not None:
            numbers["error"] = error
        self._event(EventKind.FINISHED, BECAUSE[reason], sequence, numbers)

    def _learn(self) -> None:
        state, plan = self._state, self._flying.plan
        model = state.cost_model
        if model.num_observed < NUM_OBSERVED_EACH or plan.step % OBSERVE_EVERY == 0:
            model.observe(plan.shape, self._result.duration_s)
        if state.max_step_tokens < state.policy.step.max_num_batched_tokens and plan.step % 64 == 0:
            state.max_step_tokens *= 2
        change = self._steer()
        if change is not None:
            self._events.append(limit_event(change, self._now))

    def _tell_unanswered(self) -> None:
        """Those to whom nobody yielded, and whom no other worker has claimed since."""
        state = self._state
        for seq_id, event in state.unanswered.items():
            sequence = state.waiting.sequences.get(seq_id)
            if sequence is not None:
                sequence.told += ((event.kind, event.reason),)
                self._events.append(event)
        state.unanswered.clear()

    def _steer(self) -> LimitChange | None:
        state, rows = self._state, self._state.lockstep.rows
        if not rows:
            state.batch_limit.restart_window()
            return None
        oldest = next(iter(rows.values()))
        is_full = self._flying.num_rows >= state.batch_limit.limit
        is_binding = is_full and bool(state.ready.sequences or state.waiting.sequences)
        num_together = self._flying.plan.step - oldest.join_step
        return state.batch_limit.step_applied(self._now, num_together, self._flying.tpot_s, is_binding)

    def _event(
        self, kind: EventKind, reason: Reason, sequence: Sequence, numbers: dict[str, float | int | str]
    ) -> None:
        self._events.append(
            Event(self._now, kind, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers)
        )


def _check(state: State, result: StepResult) -> tuple[InFlight, list[int]]:
    """The plan that the result belongs to, and the rows that did not simply yield one token.

    Rows that are the very values of the plan need no comparing: executors hand those back, or name the others.
    """
    if not state.in_flight:
        raise BadResult(f"a result for step {result.step}, but no step is in flight")
    flying = state.in_flight[0]
    chunks, rows = flying.chunks, result.rows
    if result.step != flying.plan.step:
        raise BadResult(f"a result for step {result.step}; the oldest begun step is {flying.plan.step}")
    if len(rows) != len(chunks):
        raise BadResult(f"step {result.step} has {len(chunks)} chunks, its result {len(rows)} rows")
    expected = chunks.decodes.expected
    num_decodes = len(expected)
    odd = _differing(expected, rows) if result.odd is None else list(result.odd)
    for index in odd:
        _check_row(chunks.decodes.seq_ids[index], True, rows[index])
    for index, chunk in enumerate(chunks.others, start=num_decodes):
        row = rows[index]
        _check_row(chunk.seq_id, chunk.samples, row)
        if row.num_new_tokens != 1 or row.stopped or row.error is not None:
            odd.append(index)
    return flying, odd


def _differing(expected: tuple[RowResult, ...], rows: tuple[RowResult, ...]) -> list[int]:
    """Places of `expected` at which `rows` has another value."""
    return [index for index in compress(count(), map(is_not, expected, rows)) if rows[index] != expected[index]]


def _check_row(seq_id: str, samples: bool, row: RowResult) -> None:
    if row.seq_id != seq_id:
        raise BadResult(f"a row for {row.seq_id} where the plan has {seq_id}: keep the order of the chunks")
    ended = row.stopped or row.error is not None
    if row.num_new_tokens > samples or (row.num_new_tokens < samples and not ended):
        raise BadResult(f"{row.num_new_tokens} tokens for {row.seq_id}; its chunk samples {int(samples)}")


def limit_event(change: LimitChange, now: float, reason: Reason | None = None) -> Event:
    """The batch limit moved."""
    why = Reason.ITL_ABOVE_BAND if change.after < change.before else Reason.ITL_BELOW_BAND
    numbers: dict[str, float | int | str] = {
        "before": change.before,
        "after": change.after,
        "itl_s": change.itl_s,
        "target_s": change.target_s,
    }
    return Event(now, EventKind.BATCH_LIMIT_CHANGED, reason or why, numbers=numbers)


def unstick(state: State) -> None:
    """Parked sequences whose copy could be made in the next step, when there would be no next step: recompute."""
    if not state.vacating or state.num_running or state.closing or len(state.ready):
        return
    for sequence in list(state.vacating.values()):
        if not state.lockstep.is_outstanding(sequence):
            del state.vacating[sequence.seq_id]
            state.notices.append(sequence.seq_id)
            await_return(state, sequence)


def _unbook(state: State) -> set[str]:
    """Undo all begun steps, as if they had not been planned; returns who was named in them."""
    begun = list(state.in_flight)
    state.in_flight.clear()
    starts: dict[str, int] = {}
    num_tokens: dict[str, int] = {}
    copied: set[str] = set()
    for flying in begun:
        state.notices.extend(flying.plan.evicted)
        copied.update(one.seq_id for one in flying.plan.swap_outs)
        copied.update(one.seq_id for one in flying.plan.swap_ins)
        for chunk in flying.plan.chunks:
            starts.setdefault(chunk.seq_id, 0 if chunk.seq_id in copied else chunk.start)
            num_tokens[chunk.seq_id] = num_tokens.get(chunk.seq_id, 0) + chunk.samples
    for seq_id, start in starts.items():
        sequence = state.sequences.get(seq_id)
        if sequence is not None and sequence.slot is not None:
            _roll_back(state, sequence, start, num_tokens[seq_id])
    state.lockstep.applied = state.lockstep.step
    return copied


def _roll_back(state: State, sequence: Sequence, start: int, num_tokens: int) -> None:
    """Blocks stay; the executor gets the whole table again."""
    state.stop_running(sequence)
    sequence.num_sampled -= num_tokens
    sequence.num_computed = start
    sequence.num_registered = min(sequence.num_registered, start // state.capacity.block_size)
    sequence.pending = []
    sequence.last_step = 0
    sequence.needs_table = True
    if sequence.state is SequenceState.RUNNING:
        state.catching_up[sequence.seq_id] = sequence


def fail_step(state: State, now: float) -> Applied:
    """No memory: all begun steps come to nothing, fewer sequences run, and a step holds fewer tokens."""
    num_running = max(1, state.num_running + len(state.closing))
    for seq_id in _unbook(state):
        sequence = state.sequences.get(seq_id)
        if sequence is not None and sequence.checkpoint_blocks:
            state.drop_checkpoint(sequence)
            sequence.num_computed = 0
    for ended in state.limbo:
        ended.last_step = 0
    state.batch_limit.restart_window()
    event = limit_event(state.batch_limit.out_of_memory(num_running), now, Reason.OUT_OF_MEMORY)
    finished = _give_up(state, now) if num_running == 1 else ()
    events = (event, *_shrink(state, now))
    state.max_step_tokens = max(state.token_budget // 2, state.batch_limit.limit, MIN_STEP_TOKENS)
    released = [one.seq_id for one in state.release_ended()]
    unstick(state)
    return Applied(events, None, tuple(finished), tuple(released))


def _shrink(state: State, now: float) -> list[Event]:
    """Park the last in line until no more run than the device has just been shown to bear."""
    events: list[Event] = []
    while state.num_running > state.batch_limit.limit:
        victim = last_in_line(state.as_victim(one) for one in state.catching_up.values())
        assert victim is not None
        sequence = victim.sequence
        state.stop_running(sequence)
        sequence.move(SequenceState.PARKED)
        sequence.parked_at, sequence.parked_by_memory = now, True
        state.notices.append(sequence.seq_id)
        await_return(state, sequence)
        numbers: dict[str, float | int | str] = {"num_blocks": victim.num_blocks}
        kind, reason = EventKind.PREEMPTED, Reason.OUT_OF_MEMORY
        events.append(Event(now, kind, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers))
    return events


def _give_up(state: State, now: float) -> tuple[Finished, ...]:
    """One sequence alone, in the smallest steps, does not fit: it ends."""
    if state.token_budget > MIN_STEP_TOKENS:
        return ()
    error = "the device has no memory for this sequence even alone; use fewer tokens or a smaller model"
    running = list(state.catching_up.values())
    return tuple(state.end(one, FinishReason.FAILED, now, error) for one in running)
