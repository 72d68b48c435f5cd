"""Who waits and why, as far as one worker knows it. Reads only.

The head of the line is walked by the code that claims from it (`core.turns`), with the same charges: who is said to go
first does. Whether there is room at all is what `core.claiming` reckons with: slots, tokens of two steps, blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from scheduler_worker.core.claiming import NUM_STEPS
from scheduler_worker.core.plan import Reason, TenantView, WaitReason
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import State
from scheduler_worker.core.step_builder import start_cost
from scheduler_worker.core.turns import Turns

MAX_PLACES: Final = 32
MAX_TENANTS: Final = 6
Numbers = dict[str, float | int | str]
Place = tuple[Sequence, Reason]


@dataclass(frozen=True, slots=True)
class Room:
    """What the next two steps have left for requests that are not claimed yet."""

    num_slots: int
    num_tokens: int
    num_blocks: int
    full: WaitReason

    @staticmethod
    def of(state: State, claimed: list[Sequence]) -> Room:
        running = state.num_running + len(state.closing)
        ending = len(state.closing) + state.lockstep.num_ending_by(state.step + NUM_STEPS)
        waiting_blocks = sum(state.blocks_promised_to(one) for one in claimed)
        limited = state.batch_limit.limit < state.capacity.num_slots
        return Room(
            num_slots=state.row_limit - running + ending - len(claimed),
            num_tokens=NUM_STEPS * state.token_budget - sum(one.num_tokens for one in claimed),
            num_blocks=state.pool.num_available - state.pool.num_promised - waiting_blocks,
            full=WaitReason.BATCH_LIMIT if limited else WaitReason.ALL_SLOTS,
        )


class WaitingTenants:
    """Made once for a snapshot, then asked class by class."""

    def __init__(self, state: State, present: Iterable[Sequence], now: float) -> None:
        self._state, self._now = state, now
        self._present = list(present)
        self._claimed = [one for one in self._present if one.state is SequenceState.CLAIMED]
        self._room = Room.of(state, self._claimed)
        self._line = self._walk() if len(state.waiting) else []
        self._places = {sequence.seq_id: place for place, (sequence, _) in enumerate(self._line)}

    def _walk(self) -> list[Place]:
        """The head of the line, as if each were granted in turn."""
        state, line = self._state, list[Place]()
        extra: dict[str, float] = {}
        for one in self._claimed:
            weight = state.ledger.classes[one.class_id].weight
            extra[one.class_id] = extra.get(one.class_id, 0.0) + start_cost(state, one, 0) / weight
        with Turns(state.waiting, state.ledger, state.policy, self._now, extra) as turns:
            for sequence, reason in islice(turns, MAX_PLACES):
                line.append((sequence, reason))
                turns.charge(sequence, start_cost(state, sequence, 0))
        return line

    def of_class(self, class_id: str) -> tuple[TenantView, ...]:
        """The tenants whose requests have waited longest, longest first."""
        oldest: dict[str, Sequence] = {}
        queue = self._state.waiting.classes.get(class_id)
        waiting = islice(queue.by_age.in_order(), MAX_PLACES) if queue else ()
        claimed = [one for one in self._claimed if one.class_id == class_id]
        for one in sorted((*waiting, *claimed), key=lambda one: (one.arrived_at, one.number)):
            oldest.setdefault(one.tenant, one)
        return tuple(self._view(one) for one in islice(oldest.values(), MAX_TENANTS))

    def num_of_class(self, class_id: str) -> int:
        """How many tenants wait in a class."""
        queue = self._state.waiting.classes.get(class_id)
        waiting = set(queue.tenants) if queue else set()
        return len(waiting | {one.tenant for one in self._claimed if one.class_id == class_id})

    def _view(self, oldest: Sequence) -> TenantView:
        class_id, tenant = oldest.class_id, oldest.tenant
        queue = self._state.waiting.classes.get(class_id)
        waiting = queue.tenants.get(tenant) if queue else None
        mine = [one for one in self._present if one.class_id == class_id and one.tenant == tenant]
        states = Counter(one.state for one in mine)
        reason, numbers = self._why(oldest)
        return TenantView(
            tenant=tenant,
            num_waiting=(len(waiting) if waiting else 0) + states[SequenceState.CLAIMED],
            num_running=states[SequenceState.RUNNING],
            oldest_wait_s=max(0.0, self._now - oldest.arrived_at),
            num_ahead=0 if oldest.state is SequenceState.CLAIMED else self._places.get(oldest.seq_id),
            reason=reason,
            numbers={**numbers, **self._who_goes_first(oldest)},
        )

    # What it lacks

    def _why(self, oldest: Sequence) -> tuple[WaitReason, Numbers]:
        """Why it does not start now on this worker, and the numbers that say so."""
        if oldest.state is SequenceState.CLAIMED:
            return self._why_claimed(oldest)
        room, numbers = self._room, self._slots()
        missing = self._state.blocks_promised_to(oldest) - room.num_blocks
        place = self._places.get(oldest.seq_id, MAX_PLACES)
        if room.num_slots <= 0:
            return room.full, numbers
        if room.num_tokens <= 0:
            return WaitReason.STEP_FULL, {**numbers, "num_step_tokens": self._state.token_budget}
        if missing > 0:
            return WaitReason.NO_BLOCKS, {**numbers, "num_blocks": missing}
        return (WaitReason.NOT_CLAIMED if place < room.num_slots else WaitReason.OTHERS_FIRST), numbers

    def _why_claimed(self, oldest: Sequence) -> tuple[WaitReason, Numbers]:
        """It starts with one of the next steps, unless it lacks blocks (those of its prompt at least)."""
        pool = self._state.pool
        missing = self._state.blocks_promised_to(oldest) - (pool.num_available - pool.num_promised)
        if missing > 0 and self._state.num_running:
            return WaitReason.NO_BLOCKS, {**self._slots(), "num_blocks": missing}
        return WaitReason.CLAIMED, self._slots()

    def _slots(self) -> Numbers:
        state = self._state
        num_running = state.num_running + len(state.closing)
        return {"num_running": num_running, "num_free_slots": max(0, state.row_limit - num_running)}

    # Who goes before it

    def _who_goes_first(self, oldest: Sequence) -> Numbers:
        place = self._places.get(oldest.seq_id)
        if not place:
            return {}
        ahead = self._line[:place]
        others = [one for one in ahead if one[0].class_id != oldest.class_id]
        mates = [one for one in ahead if one[0].class_id == oldest.class_id and one[0].tenant != oldest.tenant]
        return {**self._other_class(others), **self._other_tenant(oldest, mates)}

    @staticmethod
    def _other_class(others: list[Place]) -> Numbers:
        if not others:
            return {}
        class_id = others[0][0].class_id
        num = sum(1 for one, _ in others if one.class_id == class_id)
        return {"first_class": class_id, "num_first_class": num, "class_turn": others[0][1].value}

    def _other_tenant(self, oldest: Sequence, mates: list[Place]) -> Numbers:
        """`lead_tokens`: how many tokens more its own tenant has had, by weight, than the one that goes first."""
        if not mates:
            return {}
        first, reason = mates[0]
        num = sum(1 for one, _ in mates if one.tenant == first.tenant)
        mine, theirs = (self._state.ledger.accounts_of(one)[1] for one in (oldest, first))
        lead = (self._state.ledger.counter(mine) - self._state.ledger.counter(theirs)) * mine.weight
        numbers: Numbers = {"first_tenant": first.tenant, "num_first_tenant": num, "tenant_turn": reason.value}
        return {**numbers, "lead_tokens": lead} if lead > 0 else numbers
