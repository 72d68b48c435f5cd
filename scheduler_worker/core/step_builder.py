"""Planning: from the state, the policy and the time to one `StepPlan`. Reads only.

Decodes get their token first. What is left of the token budget goes to sequences that catch up and to those that
wait, together: first those whose TTFT objective can still be met, then by rank, then by arrival. Slots are granted in
the order of `core.turns`, and only while budget remains.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from scheduler_worker.core.chunks import NO_BLOCKS, StepChunks
from scheduler_worker.core.growth import Growth, Rest
from scheduler_worker.core.plan import (
    Chunk,
    Event,
    EventKind,
    Reason,
    StepPlan,
    StepShape,
    SwapIn,
    SwapOut,
)
from scheduler_worker.core.preemption import Victim, in_order_of_return, last_in_line
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import State, is_told, not_preempted, why_nobody_yields, yielding
from scheduler_worker.core.turns import Turns, is_urgent

MIN_PREFILL_TOKENS: Final = 32
MIN_TOKEN_S: Final = 1e-9
CHUNK_HEADROOM: Final = 0.95  # steps filled to the objective itself end above it half the time, and shrink the limit
Key = tuple[int, int, float, int]


class Need(NamedTuple):
    """What a candidate takes: its prefix hits, the blocks promised to it, and those of them that are not there."""

    hits: list[int]
    num_promised: int
    num_missing: int


class StepBuilder:
    """One step in the making. `build` is called once."""

    __slots__ = (
        "_absent",
        "_blocked",
        "_budget",
        "_bypassed",
        "_chunks",
        "_coming_blocks",
        "_coming_slots",
        "_draft",
        "_events",
        "_evicted",
        "_granted",
        "_growing",
        "_growth_ahead",
        "_new_blocks",
        "_now",
        "_num_kv",
        "_num_pairs",
        "_num_prefill",
        "_num_rows",
        "_num_single",
        "_num_started_blocks",
        "_num_swap_blocks",
        "_parked",
        "_row_limit",
        "_slots",
        "_stalled",
        "_started",
        "_state",
        "_step",
        "_swap_ins",
        "_swap_outs",
        "_token_budget",
        "_yielders",
        "_yielding",
    )

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        self._step = state.step + 1
        self._draft = state.pool.draft()
        self._slots = list(state.free_slots)
        self._absent: set[str] = set()
        self._parked: set[str] = set()
        self._granted: set[str] = set()
        self._growing: list[int] = []
        self._new_blocks: tuple[int, ...] = ()
        self._stalled: list[str] = []
        self._yielding: list[str] = []
        self._coming_slots = 0
        self._coming_blocks = 0
        self._evicted: list[str] = list(state.notices)
        self._swap_outs: list[SwapOut] = []
        self._swap_ins: list[SwapIn] = []
        self._num_swap_blocks = state.num_checkpoint_blocks
        self._token_budget = state.token_budget
        self._chunks: list[Chunk] = []
        self._events: list[Event] = []
        self._bypassed: list[str] = []
        self._blocked: list[Sequence] = []
        self._growth_ahead: Growth | None = None
        self._num_started_blocks = 0
        self._started: list[Sequence] = []
        self._yielders: dict[int, list[Sequence]] = {}
        self._num_prefill = self._num_single = self._num_kv = self._num_pairs = 0

    def build(self) -> StepPlan | None:
        """The next step, or None when there is nothing to run or too much is in flight."""
        state = self._state
        if len(state.in_flight) >= state.capacity.max_in_flight_steps:
            return None
        self._take_vacated()
        self._plan_decodes()
        num_running = len(state.lockstep.rows) + len(state.catching_up)
        self._num_rows = num_running - len(self._absent) + len(self._stalled)
        if state.catching_up or state.ready.sequences:
            self._budget = self._prefill_budget()
            self._row_limit = min(state.capacity.num_slots, state.batch_limit.limit, self._token_budget)
            self._plan_the_rest()
        return self._plan()

    # Room

    def _take_vacated(self) -> None:
        for sequence in self._state.vacating.values():
            if self._state.lockstep.is_outstanding(sequence):
                self._coming_slots += 1
                self._coming_blocks += len(sequence.blocks)
            else:
                self._vacate(self._state.as_victim(sequence))

    def _vacate(self, victim: Victim) -> None:
        """The victim's slot and blocks can be used in this step: copies out come first."""
        sequence = victim.sequence
        if victim.swaps and self._num_swap_blocks + victim.num_blocks <= self._state.capacity.num_swap_blocks:
            num_blocks = self._state.pool.blocks_for(self._state.lockstep.num_computed(sequence))
            self._swap_outs.append(SwapOut(sequence.seq_id, tuple(sequence.blocks[:num_blocks])))
            self._num_swap_blocks += num_blocks
        else:
            self._evicted.append(sequence.seq_id)
        self._draft.give_back(sequence.blocks)
        self._draft.num_promised -= max(0, sequence.promised_blocks - len(sequence.blocks))
        if sequence.slot is not None:
            self._slots.append(sequence.slot)

    def _park(self, victim: Victim, reason: Reason, by: str, numbers: dict[str, float | int | str]) -> None:
        """Make a running sequence yield: at once, or as soon as no step in flight names it."""
        sequence = victim.sequence
        self._absent.add(sequence.seq_id)
        self._parked.add(sequence.seq_id)
        self._growth_ahead = None
        if self._state.lockstep.is_outstanding(sequence):
            self._yielding.append(sequence.seq_id)
            self._coming_slots += 1
            self._coming_blocks += len(sequence.blocks)
        else:
            self._vacate(victim)
        figures = {"by": by, "return_s": victim.return_s, "swaps": int(victim.swaps), **numbers}
        self._event(EventKind.PREEMPTED, reason, sequence, figures)

    def _runs(self, sequence: Sequence) -> bool:
        return sequence.seq_id not in self._absent and sequence.seq_id not in self._granted

    def _running(self) -> Iterator[Sequence]:
        for rows in (self._state.lockstep.rows, self._state.catching_up):
            yield from (one for one in rows.values() if self._runs(one))

    # Decodes

    def _plan_decodes(self) -> None:
        self._stall_beyond_budget()
        lockstep, draft = self._state.lockstep, self._draft
        self._growing = lockstep.due_places(self._step)
        if self._absent or len(self._growing) > draft.num_available:
            self._growing = [one.place for one in self._make_room(self._growing)]
        draft.num_promised -= lockstep.num_with_promise(self._growing)
        self._new_blocks = draft.take(len(self._growing))

    def _stall_beyond_budget(self) -> None:
        """A budget that shrank below the number of rows: the last in line miss this step."""
        excess = len(self._state.lockstep.rows) - self._token_budget
        if excess > 0:
            rows = sorted(self._state.lockstep.rows.values(), key=_line)
            self._stall(rows[-excess:])

    def _stall(self, rows: list[Sequence]) -> None:
        self._stalled.extend(one.seq_id for one in rows)
        self._absent.update(one.seq_id for one in rows)

    def _make_room(self, places: list[int]) -> list[Sequence]:
        """Park the last in line until the rest can grow; those who still cannot miss this step."""
        due = [one for one in map(self._state.lockstep.row_at, places) if self._runs(one)]
        if len(due) > self._draft.num_available:
            due.sort(key=_line)
        while len(due) > self._draft.num_available + self._coming_blocks:
            victim = last_in_line(self._state.as_victim(one) for one in self._all_but_first())
            if victim is None:
                break
            numbers: dict[str, float | int | str] = {"num_blocks": victim.num_blocks, "by_class": due[0].class_id}
            self._park(victim, Reason.PREEMPTED_BY_MEMORY, due[0].seq_id, numbers)
            due = [one for one in due if self._runs(one)]
        growing, stalled = due[: self._draft.num_available], due[self._draft.num_available :]
        self._stall(stalled)
        return growing

    def _all_but_first(self) -> list[Sequence]:
        """Whoever is first in line keeps what it has: somebody always makes progress."""
        running = list(self._running())
        first = min(running, key=_line)
        return [one for one in running if one is not first]

    def _take_blocks(self, sequence: Sequence, num_blocks: int) -> tuple[int, ...]:
        """Blocks from the pool, those promised to the sequence first."""
        promised = sequence.promised_blocks - len(sequence.blocks)
        self._draft.num_promised -= min(max(promised, 0), num_blocks)
        return self._draft.take(num_blocks)

    # Budget

    def _prefill_budget(self) -> int:
        """Tokens beside the decodes: within the step's budget and the tightest running TPOT objective."""
        state = self._state
        num_decodes = len(state.lockstep.rows.keys() - self._absent) if self._absent else len(state.lockstep.rows)
        budget = self._token_budget - num_decodes
        if num_decodes == 0 or budget <= 0:
            return max(budget, 0)
        shape = StepShape(num_decodes, 0, state.lockstep.num_kv_tokens(self._step))
        left_s = CHUNK_HEADROOM * state.tightest_tpot_s - state.cost_model.predict(shape)
        token_s = max(state.cost_model.prefill_token_s(state.policy.step.max_chunk_tokens), MIN_TOKEN_S)
        if left_s < budget * token_s:
            affordable = int(left_s / token_s) if left_s > 0.0 else 0
            budget = min(budget, max(affordable, MIN_PREFILL_TOKENS))
        return budget

    # Those who catch up, and those who start

    def _plan_the_rest(self) -> None:
        catching_up = self._state.catching_up
        behind = sorted([one for one in catching_up.values() if self._runs(one)], key=self._key) if catching_up else []
        oldest, reserved = self._reserve_for_longest_resident(behind)
        self._budget -= reserved
        if self._has_slot() or self._state.ready.presses(self._now, self._state.policy.step.rescue_within_s):
            with Turns(self._state.ready, self._state.ledger, self._state.policy, self._now) as turns:
                self._share(behind, turns)
        else:
            self._grant_in_order(behind)
        self._budget += reserved
        if oldest is not None:
            self._grant_in_order([oldest])

    def _reserve_for_longest_resident(self, behind: list[Sequence]) -> tuple[Sequence | None, int]:
        """A quarter of the budget for whoever has been catching up for longest, or short prompts could starve it."""
        if not behind or self._budget <= 0:
            return None, 0
        oldest = min(behind, key=lambda one: (one.resident_since, one.number))
        if oldest is behind[0]:
            return None, 0
        behind.remove(oldest)
        quarter = max(self._budget // 4, min(self._budget, MIN_PREFILL_TOKENS))
        return oldest, min(quarter, oldest.num_tokens - oldest.num_computed)

    def _key(self, sequence: Sequence) -> Key:
        is_late = not sequence.has_first_token and self._now > self._latest_start(sequence)
        return (1 + is_late, sequence.rank, sequence.arrived_at, sequence.number)

    def _latest_start(self, sequence: Sequence) -> float:
        if sequence.slot is None:
            return sequence.latest_start_at
        left = sequence.num_tokens - sequence.num_computed
        return sequence.deadline_at - self._state.cost_model.prefill_s(left, sequence.num_computed)

    def _grant_in_order(self, behind: list[Sequence]) -> None:
        for sequence in behind:
            if self._budget <= 0:
                return
            self._grant(sequence, self._budget)

    def _share(self, behind: list[Sequence], turns: Turns) -> None:
        """Merge those with a slot and those without by the same key; a starving one comes before all."""
        queue = iter(behind)
        sequence = next(queue, None)
        for candidate, reason in self._in_line(turns):
            if sequence is not None:
                key = self._key(candidate) if reason is not Reason.STARVING else (0, 0, 0.0, 0)
                while sequence is not None and self._budget > 0 and self._key(sequence) < key:
                    self._grant(sequence, self._budget)
                    sequence = next(queue, None)
            if self._budget <= 0 or not self._consider(candidate, reason, turns):
                break
        if sequence is not None and self._budget > 0 and self._runs(sequence):
            self._grant_in_order([sequence, *queue])

    def _in_line(self, turns: Turns) -> Iterator[tuple[Sequence, Reason]]:
        """Whoever presses may take a slot from another; the others come only while there is one."""
        yield from turns.pressing()
        if self._has_slot():
            for found in turns.in_turn():
                yield found
                if not (self._has_slot() or turns.has_urgent):
                    return

    def _grant(self, sequence: Sequence, most: int) -> bool:
        """A chunk for a sequence that has a slot; False when it lacks the blocks."""
        if not self._runs(sequence):
            return False
        left = sequence.num_tokens - sequence.num_computed
        num_tokens = min(left, most, self._state.policy.step.max_chunk_tokens)
        missing = self._state.pool.blocks_for(sequence.num_computed + num_tokens) - len(sequence.blocks)
        if missing > self._draft.num_available:
            return self._grant_without_blocks(sequence, num_tokens)
        self._add_chunk(sequence, sequence.num_computed, num_tokens, self._take_blocks(sequence, max(missing, 0)))
        return True

    def _grant_without_blocks(self, sequence: Sequence, num_tokens: int) -> bool:
        """As much as fits into the blocks that it has."""
        room = len(sequence.blocks) * self._state.capacity.block_size - sequence.num_computed
        if room > 0:
            self._add_chunk(sequence, sequence.num_computed, min(num_tokens, room), NO_BLOCKS)
        return room > 0

    def _add_chunk(self, sequence: Sequence, start: int, num_tokens: int, new_blocks: tuple[int, ...]) -> None:
        assert sequence.slot is not None
        first = sequence.needs_table
        table = (*sequence.blocks, *new_blocks) if first else new_blocks
        self._append(sequence, sequence.slot, start, num_tokens, first, table)

    def _append(
        self, sequence: Sequence, slot: int, start: int, num_tokens: int, first: bool, blocks: tuple[int, ...]
    ) -> None:
        samples = start + num_tokens == sequence.num_prompt_tokens + sequence.num_sampled
        seq_id = sequence.seq_id
        self._chunks.append(Chunk(seq_id, slot, start, num_tokens, samples, first, blocks))
        self._granted.add(seq_id)
        self._budget -= num_tokens
        self._num_kv += start + num_tokens
        if num_tokens == 1 and samples and start > 0:
            self._num_single += 1
        else:
            self._num_prefill += num_tokens
            self._num_pairs += num_tokens * start + num_tokens * (num_tokens + 1) // 2

    # Starting

    def _consider(self, candidate: Sequence, reason: Reason, turns: Turns) -> bool:
        """Start the candidate if there is room, or make room if it is urgent. False ends the pass."""
        has_slot, urgent = self._has_slot(), is_urgent(candidate, self._now, self._state.policy.step.rescue_within_s)
        if not urgent and not has_slot:
            return reason is Reason.STARVING
        need = self._need(candidate)
        if urgent and (need.num_missing > 0 or not has_slot):
            self._make_way(candidate, need.num_missing)
            need, has_slot = self._need(candidate), self._has_slot()
        if not has_slot:
            return reason in (Reason.STARVING, Reason.RESCUE)
        if need.num_missing > 0:
            return self._wait_for_blocks(candidate, need.num_missing)
        if self._blocked and not self._may_pass_the_blocked():
            return False
        self._start(candidate, reason, need, turns)
        return True

    def _has_slot(self) -> bool:
        return bool(self._slots) and self._num_rows < self._row_limit

    def _need(self, candidate: Sequence) -> Need:
        """Its prefix hits, what is promised to it, and how many blocks it lacks beyond those free and not promised."""
        hits: list[int] = []
        if candidate.hashes and candidate.checkpoint_blocks == 0:
            hits = self._draft.match(candidate.hashes, (candidate.num_tokens - 1) // self._state.capacity.block_size)
        by_hits = len(hits) - self._draft.num_idle(hits) if hits else 0
        num_promised = self._state.blocks_promised_to(candidate)
        missing = num_promised - by_hits - self._draft.num_available + self._draft.num_promised
        if missing > 0 and (self._is_alone() or self._fits_as_others_end(candidate)):
            missing = self._state.pool.blocks_for(candidate.num_tokens) - by_hits - self._draft.num_available
        return Need(hits, num_promised, missing)

    def _fits_as_others_end(self, candidate: Sequence) -> bool:
        """Whether its growth fits into what others give back in time, though not all growth at once does."""
        if self._growth_ahead is None:
            rows = [self._rest(one) for one in (*self._holding(), *self._started)]
            self._growth_ahead = Growth(self._state.capacity.block_size, rows)
        room = self._draft.num_available + sum(len(one.blocks) for one in self._holding()) + self._num_started_blocks
        return self._growth_ahead.peak_with(*self._rest(candidate)) <= room

    def _holding(self) -> Iterator[Sequence]:
        """Running sequences that keep their blocks in this step."""
        for rows in (self._state.lockstep.rows, self._state.catching_up):
            yield from (one for one in rows.values() if one.seq_id not in self._parked)

    def _rest(self, sequence: Sequence) -> Rest:
        """Tokens that it is expected to make yet, and those that it has."""
        num_sampled = self._state.lockstep.num_sampled(sequence)
        return self._state.rest_of(sequence), sequence.num_prompt_tokens + num_sampled

    def _is_alone(self) -> bool:
        return self._num_rows == 0 and not self._state.closing and not self._state.limbo

    def _wait_for_blocks(self, candidate: Sequence, missing: int) -> bool:
        """Let others pass at most so often, then hold the blocks for it."""
        may_pass = candidate.num_bypasses + self._bypassed.count(candidate.seq_id) < self._max_bypasses
        reason = Reason.NO_BLOCKS if may_pass else Reason.HEAD_HOLDS_BLOCKS
        if (EventKind.OUT_OF_BLOCKS, reason) not in candidate.told:
            self._event(EventKind.OUT_OF_BLOCKS, reason, candidate, {"num_blocks": missing})
        self._blocked.append(candidate)
        return may_pass

    @property
    def _max_bypasses(self) -> int:
        return self._state.policy.memory.max_bypasses

    def _may_pass_the_blocked(self) -> bool:
        """Each start ahead of a blocked head is a bypass of it."""
        return all(
            head.num_bypasses + self._bypassed.count(head.seq_id) < self._max_bypasses for head in self._blocked
        )

    def _start(self, candidate: Sequence, reason: Reason, need: Need, turns: Turns) -> None:
        state, hits, size = self._state, need.hits, self._state.capacity.block_size
        slot = self._slots.pop(0)
        self._num_rows += 1
        start = candidate.num_computed if candidate.checkpoint_blocks else len(hits) * size
        num_tokens = min(candidate.num_tokens - start, self._budget, state.policy.step.max_chunk_tokens)
        num_blocks = -(-(start + num_tokens) // size)
        if hits:
            self._draft.take_hits(hits)
        self._draft.num_promised += need.num_promised - num_blocks
        fresh = self._draft.take(num_blocks - len(hits))
        self._num_started_blocks += num_blocks
        self._started.append(candidate)
        if self._growth_ahead is not None:
            self._growth_ahead.add(*self._rest(candidate))
        self._say_started(candidate, reason, start)
        cost = start_cost(state, candidate, start)
        if candidate.checkpoint_blocks:
            self._swap_ins.append(SwapIn(candidate.seq_id, slot, fresh[: candidate.checkpoint_blocks]))
            self._append(candidate, slot, start, num_tokens, False, fresh[candidate.checkpoint_blocks :])
        else:
            self._append(candidate, slot, start, num_tokens, True, (*hits, *fresh))
        turns.charge(candidate, self._whole_cost(candidate, start) if reason is Reason.STARVING else cost)
        if self._blocked:
            self._bypassed.extend([head.seq_id for head in self._blocked])

    def _say_started(self, candidate: Sequence, reason: Reason, start: int) -> None:
        numbers: dict[str, float | int | str] = {"num_cached_tokens": start}
        if reason is Reason.STARVING:
            numbers["tier_cost"] = self._whole_cost(candidate, start)
        if candidate.state is SequenceState.PARKED:
            swapped = candidate.checkpoint_blocks > 0
            numbers["parked_s"] = self._now - (candidate.parked_at or self._now)
            self._event(EventKind.RESUMED, Reason.SWAPPED_IN if swapped else Reason.RECOMPUTES, candidate, numbers)
        else:
            numbers["wait_s"] = self._now - candidate.arrived_at
            numbers["left_s"] = candidate.latest_start_at - self._now
            self._event(EventKind.SCHEDULED, reason, candidate, numbers)
        if self._now > candidate.bound_at and not candidate.is_bound_settled:
            self._events.append(self._state.missed_bound(candidate, self._now))

    def _whole_cost(self, candidate: Sequence, start: int) -> float:
        """Prompt and expected answer: what a start through the starvation tier takes of its class's share."""
        left = self._state.output_lengths(candidate.class_id).expected(candidate.max_tokens) - candidate.num_sampled
        return start_cost(self._state, candidate, start) + max(left, 1) * self._state.ledger.row_cost

    # Preemption by priority

    def _make_way(self, candidate: Sequence, missing: int) -> None:
        """Park the cheapest victims for an urgent candidate, if together they give it what it lacks."""
        needs_slot = not self._has_slot()
        if needs_slot and self._coming_slots > 0:
            self._coming_slots -= 1
            needs_slot = False
        missing -= self._coming_blocks
        if not needs_slot and missing <= 0:
            return
        chosen = self._choose_victims(candidate, needs_slot, missing)
        left_s = candidate.latest_start_at - self._now
        for victim in chosen:
            numbers: dict[str, float | int | str] = {"left_s": left_s, "by_class": candidate.class_id}
            self._park(victim, Reason.PREEMPTED_BY_PRIORITY, candidate.seq_id, numbers)
            self._num_rows -= 1
        if chosen and needs_slot and self._yielding:
            self._coming_slots -= 1

    def _choose_victims(self, candidate: Sequence, needs_slot: bool, missing: int) -> list[Victim]:
        """As few as give the candidate its slot and blocks; none when all of them would not."""
        chosen: list[Victim] = []
        for sequence in self._in_order_of_return(candidate.rank):
            if chosen and missing <= 0:
                break
            if self._runs(sequence):
                chosen.append(self._state.as_victim(sequence))
                missing -= self._blocks_freed_by(sequence)
        if missing <= 0 and (chosen or not needs_slot):
            return chosen
        self._say_not_preempted(candidate)
        return []

    def _in_order_of_return(self, by_rank: int) -> list[Sequence]:
        """Running sequences that may yield to one of rank `by_rank`, the cheapest return first."""
        if by_rank not in self._yielders:
            rows = yielding(self._state, by_rank, self._now)
            self._yielders[by_rank] = in_order_of_return(rows, self._state.lockstep.num_computed)
        return self._yielders[by_rank]

    def _blocks_freed_by(self, sequence: Sequence) -> int:
        """Its own blocks and what is still promised to it."""
        own = sum(1 for block in sequence.blocks if self._state.pool.num_holders(block) == 1)
        return own + max(0, sequence.promised_blocks - len(sequence.blocks))

    def _say_not_preempted(self, candidate: Sequence) -> None:
        """Why those that run stay."""
        if not is_told(candidate, EventKind.NOT_PREEMPTED):
            why = why_nobody_yields(self._state, self._running(), candidate.rank, self._now)
            if why is not None:
                self._events.append(not_preempted(candidate, why, self._now))

    # The plan

    def _event(
        self, kind: EventKind, reason: Reason, sequence: Sequence, numbers: dict[str, float | int | str]
    ) -> None:
        self._events.append(
            Event(self._now, kind, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers)
        )

    def _plan(self) -> StepPlan | None:
        lockstep = self._state.lockstep
        decodes = lockstep.decode_rows(self._absent)
        num_decodes = len(decodes.seq_ids)
        if not num_decodes and not self._chunks:
            return None
        num_kv = self._num_kv + lockstep.num_kv_tokens(self._step)
        if num_decodes < len(lockstep):
            num_kv = self._num_kv + sum(decodes.offsets) + (self._step + 1) * num_decodes
        growth = lockstep.by_place(self._growing, self._new_blocks, self._absent)
        shape = StepShape(num_decodes + self._num_single, self._num_prefill, num_kv, self._num_pairs)
        return StepPlan(  # by position: names would take twice as long
            self._step,
            self._state.policy_version,
            self._now,
            StepChunks(self._step, decodes, growth, tuple(self._chunks)),
            tuple(self._swap_outs),
            tuple(self._swap_ins),
            tuple(self._evicted),
            shape,
            self._state.cost_model.predict(shape),
            tuple(self._events),
            num_decodes,
            tuple(self._stalled),
            tuple(self._yielding),
            tuple(self._bypassed),
        )


def _line(sequence: Sequence) -> tuple[int, float, int]:
    return (sequence.rank, sequence.arrived_at, sequence.number)


def start_cost(state: State, sequence: Sequence, num_cached: int) -> float:
    """What starting charges: the prompt once; what is computed again is charged to nobody."""
    if sequence.is_charged:
        return 0.0
    return state.ledger.prompt_cost(sequence.num_prompt_tokens, min(num_cached, sequence.num_prompt_tokens))
