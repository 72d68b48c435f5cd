"""Which waiting sequences this worker should claim: those that would start within two steps, and no more.

A claim takes a sequence from the other workers, so it comes late. Counted are slots and tokens that two steps offer,
rows that book their last token in them, and, for urgent sequences, rows that preemption could take.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Final

from scheduler_worker.core.plan import EventKind, Reason
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import State, is_told, not_preempted, why_nobody_yields, yielding
from scheduler_worker.core.step_builder import start_cost
from scheduler_worker.core.turns import Turns, is_urgent

NUM_STEPS: Final = 2
MAX_WITHOUT_BLOCKS: Final = 4
MAX_EXAMINED: Final = 512
Place = tuple[float, int, float, int, bool, float, int]


def claim_candidates(state: State, now: float) -> tuple[str, ...]:
    """Ids of waiting sequences to claim, best first."""
    if not len(state.waiting):
        return ()
    return tuple(_Claims(state, now).choose())


class _Claims:
    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        claimed = [one for one in state.ready.sequences.values() if one.state is SequenceState.CLAIMED]
        self._num_slots = self._slots_within_two_steps() - len(claimed)
        self._num_tokens = NUM_STEPS * state.token_budget - sum(one.num_tokens for one in claimed)
        self._num_blocks = state.pool.num_available - state.pool.num_promised
        self._lacking: list[Place] = []
        self._num_yielding: dict[int, int] = {}
        self._why_not: dict[int, tuple[Reason, int] | None] = {}
        self._extra: dict[str, float] = {}
        for one in claimed:
            self._count(one)

    def _slots_within_two_steps(self) -> int:
        state = self._state
        ending = len(state.closing) + state.lockstep.num_ending_by(state.step + NUM_STEPS)
        running = state.num_running + len(state.closing)
        return state.row_limit - running + ending

    def _count(self, sequence: Sequence) -> None:
        """One that is claimed takes blocks, and its class's turn."""
        self._fits(sequence)
        weight = self._state.ledger.classes[sequence.class_id].weight
        cost = start_cost(self._state, sequence, 0) / weight
        self._extra[sequence.class_id] = self._extra.get(sequence.class_id, 0.0) + cost

    def choose(self) -> list[str]:
        """Walk the line until slots or tokens are spoken for."""
        chosen: list[str] = []
        state = self._state
        if self._num_slots <= 0 and not state.waiting.has_urgent(self._now, state.policy.step.rescue_within_s):
            return chosen
        with Turns(state.waiting, state.ledger, state.policy, self._now, self._extra) as turns:
            self._take_from(islice(turns.pressing(), MAX_EXAMINED), turns, chosen, may_preempt=True)
            self._take_from(islice(turns.in_turn(), MAX_EXAMINED), turns, chosen, may_preempt=False)
        return chosen

    def _take_from(
        self, line: Iterator[tuple[Sequence, Reason]], turns: Turns, chosen: list[str], *, may_preempt: bool
    ) -> None:
        """Who is next is not looked for where nobody can be taken."""
        while self._num_tokens > 0 and (self._num_slots > 0 or may_preempt) and (found := next(line, None)):
            sequence, _ = found
            if self._wants(sequence):
                chosen.append(sequence.seq_id)
                turns.charge(sequence, start_cost(self._state, sequence, 0))

    def _wants(self, sequence: Sequence) -> bool:
        urgent = is_urgent(sequence, self._now, self._state.policy.step.rescue_within_s)
        if self._num_slots <= 0 and not (urgent and self._could_preempt(sequence)):
            return False
        if not self._fits(sequence):
            return False
        self._num_slots -= 1
        self._num_tokens -= min(sequence.num_tokens, self._state.policy.step.max_chunk_tokens * NUM_STEPS)
        return True

    def _could_preempt(self, sequence: Sequence) -> bool:
        """Whether a row would yield to it that no other claimed sequence counts on."""
        rank = sequence.rank
        if rank not in self._num_yielding:
            self._num_yielding[rank] = len(yielding(self._state, rank, self._now))
        taken = max(0, -self._num_slots)
        if taken < self._num_yielding[rank]:
            return True
        if self._num_yielding[rank] == 0:
            self._note_unanswered(sequence)
        return False

    def _note_unanswered(self, sequence: Sequence) -> None:
        """No row yields to it; the reason is looked for once a rank."""
        state, rank = self._state, sequence.rank
        if sequence.seq_id in state.unanswered or is_told(sequence, EventKind.NOT_PREEMPTED):
            return
        if rank not in self._why_not:
            rows = chain(state.lockstep.rows.values(), state.catching_up.values())
            self._why_not[rank] = why_nobody_yields(state, rows, rank, self._now)
        why = self._why_not[rank]
        if why is not None:
            state.unanswered[sequence.seq_id] = not_preempted(sequence, why, self._now)

    def _fits(self, sequence: Sequence) -> bool:
        """Blocks are counted, and a few that lack them are claimed all the same: blocks are held for them.

        Only those ahead of it in line count against it: whoever comes late and is next must not wait for them.
        """
        needed = self._state.blocks_promised_to(sequence)
        if needed <= self._num_blocks:
            self._num_blocks -= needed
            return True
        place = self._place(sequence)
        num_ahead = sum(1 for other in self._lacking if other <= place)
        if num_ahead < MAX_WITHOUT_BLOCKS:
            self._lacking.append(place)
            return True
        return False

    def _place(self, sequence: Sequence) -> Place:
        """Where it stands in its turn."""
        ledger = self._state.ledger
        account, tenant = ledger.accounts_of(sequence)
        return (*ledger.order(account), *ledger.order(tenant), sequence.is_late, sequence.deadline_at, sequence.number)
