"""Frozen values that cross the core's edge: what to run, what came of it, what was decided and why.

A step has three beats: the core plans (reads only), books (`begin`), and applies the result. A `StepPlan` can be
printed, compared and replayed; the executor needs nothing else. Times are seconds on the clock of `now`.

What is made in every step, or for every row that starts or ends, is a named tuple: a frozen dataclass takes three
times as long to make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from scheduler_worker.core.sequence import FinishReason, SequenceState

NO_NUMBERS: Final[Mapping[str, float | int | str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one executor offers the scheduler.

    `num_slots` rows can be in the running batch; the KV cache has `num_blocks` blocks of `block_size` tokens,
    numbered 0 to `num_blocks - 1`. `num_swap_blocks` blocks fit the host's checkpoint memory; copying one there or
    back takes `swap_block_s`.
    """

    num_slots: int
    num_blocks: int
    block_size: int
    max_model_len: int
    max_in_flight_steps: int = 1
    num_swap_blocks: int = 0
    swap_block_s: float = 50e-6


class Chunk(NamedTuple):
    """The tokens of one sequence in one step: positions `start` to `start + num_tokens - 1`.

    `new_blocks` are appended to the sequence's block table before
    the forward pass (all its blocks, cached ones first, when `first` is set: they *replace* its block table, also of
    a sequence that ran before). `samples` says that the chunk reaches the sequence's last token, so that the step
    yields its next one.
    """

    seq_id: str
    slot: int
    start: int
    num_tokens: int
    samples: bool
    first: bool = False
    new_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SwapOut:
    """Copy these blocks, in block-table order, to the checkpoint of `seq_id` before they are overwritten."""

    seq_id: str
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SwapIn:
    """Copy the checkpoint of `seq_id` into these blocks; they become its block table."""

    seq_id: str
    slot: int
    blocks: tuple[int, ...]


class StepShape(NamedTuple):
    """The sizes that a step's time depends on, as the cost model sees them.

    `num_kv_tokens` counts context tokens read by all rows; `num_attention_pairs` counts query × key pairs of
    prefill chunks (attention's quadratic part).
    """

    num_decode_rows: int = 0
    num_prefill_tokens: int = 0
    num_kv_tokens: int = 0
    num_attention_pairs: int = 0


class StepPlan(NamedTuple):
    """One forward pass. The executor copies out, copies in, then computes the chunks, in this order.

    `chunks` is a tuple, or the core's `StepChunks`, which is like one and also has its decoding rows by columns.
    `evicted` names sequences whose slot and blocks are gone without a checkpoint (to be recomputed on return).

    The rest is for the booking: the first `num_lockstep` chunks are decodes that only advance; `stalled` decodes get
    no token in this step; `yielding` sequences are parked as soon as no step in flight names them; `bypassed` heads
    were overtaken, once per mention.
    """

    step: int
    policy_version: int
    planned_at: float
    chunks: Sequence[Chunk]
    swap_outs: tuple[SwapOut, ...] = ()
    swap_ins: tuple[SwapIn, ...] = ()
    evicted: tuple[str, ...] = ()
    shape: StepShape = StepShape()
    predicted_s: float = 0.0
    events: tuple[Event, ...] = ()
    num_lockstep: int = 0
    stalled: tuple[str, ...] = ()
    yielding: tuple[str, ...] = ()
    bypassed: tuple[str, ...] = ()


class RowResult(NamedTuple):
    """What one chunk came to. `stopped` is set by the executor for EOS and stop tokens only; length is the
    core's to decide. A row with an `error` failed alone; its sequence ends."""

    seq_id: str
    num_new_tokens: int
    stopped: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FilledBlock:
    """The block at `index` of the sequence's block table became full; `block_hash` covers all tokens up to it."""

    seq_id: str
    index: int
    block_hash: int


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of the plan with the same `step`; rows in the order of its chunks.

    `duration_s` is what the cost model learns from: the time the device spent on this step. `odd` has the places of
    decoding rows that are not what the plan expects, for executors that know (None: they are looked for).
    """

    step: int
    rows: tuple[RowResult, ...]
    duration_s: float
    filled_blocks: tuple[FilledBlock, ...] = ()
    odd: tuple[int, ...] | None = None


class EventKind(StrEnum):
    """What happened. Metrics, logs and explanations are folds over these."""

    QUEUED = "queued"
    SCHEDULED = "scheduled"
    PREEMPTED = "preempted"
    NOT_PREEMPTED = "not_preempted"
    RESUMED = "resumed"
    TOKENS_EMITTED = "tokens_emitted"
    FIRST_TOKEN = "first_token"
    FINISHED = "finished"
    REJECTED = "rejected"
    BATCH_LIMIT_CHANGED = "batch_limit_changed"
    BOUND_MISSED = "bound_missed"
    POLICY_APPLIED = "policy_applied"
    OUT_OF_BLOCKS = "out_of_blocks"


class Reason(StrEnum):
    """Why it happened. `protocol.reasons` has one sentence for each, filled with the event's numbers."""

    ARRIVED = "arrived"
    REQUEUED = "requeued"
    TURN = "turn"
    RESCUE = "rescue"
    STARVING = "starving"
    ONLY_CLASS_WAITING = "only_class_waiting"
    PREEMPTED_BY_PRIORITY = "preempted_by_priority"
    PREEMPTED_BY_MEMORY = "preempted_by_memory"
    AS_URGENT = "as_urgent"
    CLASS_MAY_NOT_YIELD = "class_may_not_yield"
    PAST_MAX_GENERATED = "past_max_generated"
    PAST_MAX_PREEMPTIONS = "past_max_preemptions"
    WITHIN_MIN_RESIDENCY = "within_min_residency"
    NO_BLOCKS = "no_blocks"
    HEAD_HOLDS_BLOCKS = "head_holds_blocks"
    SWAPPED_IN = "swapped_in"
    RECOMPUTES = "recomputes"
    STOPPED = "stopped"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"
    CLAIMED_ELSEWHERE = "claimed_elsewhere"
    ITL_ABOVE_BAND = "itl_above_band"
    ITL_BELOW_BAND = "itl_below_band"
    OUT_OF_MEMORY = "out_of_memory"
    POLICY_PUBLISHED = "policy_published"
    PREDICTED_TTFT = "predicted_ttft"
    PREDICTED_WAIT = "predicted_wait"
    QUEUE_FULL = "queue_full"
    TENANT_QUOTA = "tenant_quota"
    TOO_LONG = "too_long"
    ESTIMATE_WAS_OFF = "estimate_was_off"
    MORE_URGENT_WORK = "more_urgent_work"
    WORKER_SLOWED = "worker_slowed"


class WaitReason(StrEnum):
    """Why a request that waits does not start now, the mildest first. `protocol.reasons` words them."""

    CLAIMED = "claimed"
    NOT_CLAIMED = "not_claimed"
    OTHERS_FIRST = "others_first"
    STEP_FULL = "step_full"
    NO_BLOCKS = "no_blocks"
    BATCH_LIMIT = "batch_limit"
    ALL_SLOTS = "all_slots"
    DRAINING = "draining"


class Event(NamedTuple):
    """One decision: its time, what happened to whom, why, and the numbers that decided it.

    `numbers` holds plain figures under the names that `protocol.reasons` prints (`left_s`, `by`, `num_blocks`,
    …); ids of other sequences are strings. Events are values: two runs of one workload yield equal ones.
    """

    at: float
    kind: EventKind
    reason: Reason
    seq_id: str = ""
    class_id: str = ""
    tenant: str = ""
    numbers: Mapping[str, float | int | str] = NO_NUMBERS


class TokensEmitted(NamedTuple):
    """All tokens that one step emitted: `rows` pairs a sequence with its number of new tokens (one event a step).

    `rows` is a tuple, or the core's `Emitted`, which is like one and makes its pairs when they are asked for.
    """

    at: float
    step: int
    rows: Sequence[tuple[str, int]]


class Finished(NamedTuple):
    """A sequence that ended in this `apply_result` or `cancel`; see `Applied.released` for the executor.

    `wait_s` runs from arrival to the first scheduled chunk, `queued_s + formation_s` of the breakdown together;
    `prefill_s` from there to the first token, `decode_s` to the last. `ttft_s` is the worker's own figure, never
    an SLO figure. None where the sequence did not get that far.
    """

    seq_id: str
    class_id: str
    reason: FinishReason
    num_generated_tokens: int
    error: str | None = None
    wait_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    parked_s: float = 0.0
    num_preemptions: int = 0
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply_result`, `cancel` and `set_policy` return: decisions, the step's tokens, and who ended.

    `released` names ended sequences that no step in flight names any more: only then may the executor drop them.
    """

    events: tuple[Event, ...] = ()
    tokens: TokensEmitted | None = None
    finished: tuple[Finished, ...] = ()
    released: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One sequence on the operator's screen."""

    seq_id: str
    class_id: str
    tenant: str
    state: SequenceState
    arrived_at: float
    num_prompt_tokens: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_blocks: int
    first_token_late: bool
    parked_at: float | None = None
    parked_by_memory: bool = False


@dataclass(frozen=True, slots=True)
class TenantView:
    """One tenant's waiting requests of a class, and why the oldest does not start now on this worker.

    `num_ahead` requests of any class go before it; None beyond the part of the line that was looked at.
    """

    tenant: str
    num_waiting: int
    num_running: int
    oldest_wait_s: float
    num_ahead: int | None
    reason: WaitReason
    numbers: Mapping[str, float | int | str]


class TenantService(NamedTuple):
    """What this worker has served a tenant in a class since it started (cost tokens), and whether it is active."""

    service_tokens: float
    weight: float
    is_active: bool


@dataclass(frozen=True, slots=True)
class ClassView:
    """One class as this worker's mirror of the queue sees it. `waits_s` is sorted, longest first, at most 64.

    `tenants` are those that wait longest, of `num_tenants` that wait; `services` has all that were served.

    `service_tokens` is the cost-weighted service of this worker since it started, before weighting.
    """

    class_id: str
    num_waiting: int
    num_running: int
    num_parked: int
    oldest_wait_s: float
    num_late: int
    waits_s: tuple[float, ...]
    service_tokens: float
    tenants: tuple[TenantView, ...] = ()
    num_tenants: int = 0
    services: Mapping[str, TenantService] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler's state for telemetry: O(batch + classes) to make."""

    at: float
    step: int
    policy_version: int
    batch_limit: int
    batch_limit_itl_s: float | None
    batch_limit_target_s: float | None
    num_slots: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    classes: tuple[ClassView, ...]
    sequences: tuple[SequenceView, ...]
