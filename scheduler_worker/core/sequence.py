"""What a request is to the scheduler: counts, a class, a tenant, a place in the order of arrival.

The core never sees token ids. It sees how many tokens there are, opaque hashes of full blocks, and, after each
step, which rows stopped. `TRANSITIONS` is the one table of legal state changes; everything else raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class SequenceState(StrEnum):
    """Where a sequence is. A header is waiting until this worker claims it."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    RUNNING = "running"
    PARKED = "parked"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence left the scheduler."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


TRANSITIONS: Final[dict[SequenceState, frozenset[SequenceState]]] = {
    SequenceState.WAITING: frozenset({SequenceState.CLAIMED, SequenceState.FINISHED}),
    SequenceState.CLAIMED: frozenset({SequenceState.RUNNING, SequenceState.FINISHED}),
    SequenceState.RUNNING: frozenset({SequenceState.PARKED, SequenceState.FINISHED}),
    SequenceState.PARKED: frozenset({SequenceState.RUNNING, SequenceState.FINISHED}),
    SequenceState.FINISHED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A state change that `TRANSITIONS` does not allow: a defect of ours, never of the input."""

    def __init__(self, seq_id: str, current: SequenceState, wanted: SequenceState) -> None:
        super().__init__(f"sequence {seq_id} cannot go from {current} to {wanted}")
        self.seq_id = seq_id
        self.current = current
        self.wanted = wanted


def check_transition(seq_id: str, current: SequenceState, wanted: SequenceState) -> None:
    """Raise `IllegalTransition` unless the table allows `current` → `wanted`."""
    if wanted not in TRANSITIONS[current]:
        raise IllegalTransition(seq_id, current, wanted)


@dataclass(frozen=True, slots=True)
class SequenceHeader:
    """A request as the queue announces it: everything that scheduling needs, nothing that inference needs.

    `arrival_number` is unique in the pool and ends every ordering. `arrived_at` is on the clock of `now`, in
    seconds. `block_hashes` holds one opaque hash per *full* block of the prompt, in order, each covering all
    tokens up to the end of its block. `num_generated_tokens` is above 0 for a request that another worker began.
    """

    seq_id: str
    class_id: str
    tenant: str
    arrival_number: int
    arrived_at: float
    num_prompt_tokens: int
    max_tokens: int
    num_generated_tokens: int = 0
    block_hashes: tuple[int, ...] = ()
    tenant_weight: float = 1.0
    attempt: int = 0
    arm: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: the prompt and what was already generated."""
        return self.num_prompt_tokens + self.num_generated_tokens
