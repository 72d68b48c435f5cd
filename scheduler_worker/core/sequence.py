"""What a request is to the scheduler: counts, a class, a tenant, a place in the order of arrival.

The core never sees token ids. It sees how many tokens there are, opaque hashes of full blocks, and, after each
step, which rows stopped. `TRANSITIONS` is the one table of legal state changes; everything else raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class SequenceState(StrEnum):
    """Where a sequence is. A header is waiting until this worker claims it."""

    __hash__ = str.__hash__  # an enum's own is a call of Python's for each look into a table

    WAITING = "waiting"
    CLAIMED = "claimed"
    RUNNING = "running"
    PARKED = "parked"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence left the scheduler."""

    __hash__ = str.__hash__

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


class Foreseen(NamedTuple):
    """What could be known when a sequence began to wait: the work (cost tokens) that more urgent classes had brought
    until then and brought per second, and what this worker had served."""

    at: float
    urgent_cost: float
    urgent_cost_per_s: float
    served_cost: float


class Sequence:
    """A request's mutable scheduling state. Counts only; the token ids are the executor's.

    `num_sampled` counts output tokens that are booked, those still in flight included; `pending` names the steps in
    flight that sample one. While a sequence decodes in lockstep, `core.lockstep` derives both counts from the step
    number and the fields here are those of the moment it joined. `told` has the kinds and reasons of events that are
    told once; `is_bound_settled` says that its wait is over, or known to have missed its bound.
    """

    __slots__ = (
        "arrived_at",
        "blocks",
        "bound_at",
        "checkpoint_blocks",
        "class_id",
        "deadline_at",
        "first_scheduled_at",
        "first_token_at",
        "foreseen",
        "hashes",
        "header",
        "is_bound_settled",
        "is_charged",
        "is_late",
        "join_step",
        "last_step",
        "latest_start_at",
        "max_tokens",
        "needs_table",
        "num_bypasses",
        "num_cached_tokens",
        "num_computed",
        "num_preemptions",
        "num_prompt_tokens",
        "num_registered",
        "num_sampled",
        "number",
        "offset",
        "parked_at",
        "parked_by_memory",
        "parked_s",
        "pending",
        "place",
        "prefill_s",
        "promised_blocks",
        "queue_token",
        "rank",
        "resident_since",
        "seq_id",
        "slot",
        "state",
        "tenant",
        "tier_at",
        "told",
    )

    def __init__(self, header: SequenceHeader, max_tokens: int) -> None:
        self.header = header
        self.seq_id = header.seq_id
        self.tenant = header.tenant
        self.number = header.arrival_number
        self.arrived_at = header.arrived_at
        self.num_prompt_tokens = header.num_prompt_tokens
        self.max_tokens = max_tokens
        self.num_sampled = header.num_generated_tokens
        self.state = SequenceState.WAITING
        self._start_clean()

    def _start_clean(self) -> None:
        self.class_id = self.header.class_id
        self.rank = 0
        self.num_computed = self.num_cached_tokens = self.num_registered = 0
        self.blocks: list[int] = []
        self.hashes: list[int] = []
        self.promised_blocks = self.checkpoint_blocks = 0
        self.slot: int | None = None
        self.pending: list[int] = []
        self.join_step = self.last_step = self.offset = self.place = 0
        self.queue_token = self.num_bypasses = self.num_preemptions = 0
        self.needs_table = True
        self.is_late = self.is_charged = self.parked_by_memory = self.is_bound_settled = False
        self.told: tuple[tuple[str, str], ...] = ()
        self.foreseen: Foreseen | None = None
        self.deadline_at = self.latest_start_at = self.tier_at = self.bound_at = self.prefill_s = 0.0
        self.resident_since = self.parked_s = 0.0
        self.parked_at: float | None = None
        self.first_scheduled_at: float | None = None
        self.first_token_at: float | None = None

    def move(self, wanted: SequenceState) -> None:
        """Change state; raises `IllegalTransition` for a move that `TRANSITIONS` lacks."""
        if wanted not in TRANSITIONS[self.state]:
            raise IllegalTransition(self.seq_id, self.state, wanted)
        self.state = wanted

    @property
    def num_tokens(self) -> int:
        """Tokens to be computed before the next one can be sampled (not valid in lockstep)."""
        return self.num_prompt_tokens + self.num_sampled

    @property
    def has_first_token(self) -> bool:
        """Whether its TTFT is settled, here or by the worker that began it."""
        return self.first_token_at is not None or self.header.num_generated_tokens > 0
