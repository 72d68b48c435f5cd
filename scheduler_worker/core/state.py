"""Everything a scheduler knows, in one place: planning reads it, booking and applying change it.

A sequence that is not finished is in exactly one of: `waiting` (not claimed), `ready` (claimed or parked, may start),
`catching_up` (runs, behind its last token), `lockstep` (decodes), `closing` (its last token is booked) and
`vacating` (parked, but a step in flight still names it, or its blocks are still to be copied out). `limbo` holds ended
sequences whose slot and blocks a step in flight still uses. `unanswered` holds the news of waiting sequences to whom
nobody would yield, to be told if no other worker has claimed them by the end of the step.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Final

from scheduler_worker.core.batch_limit import BatchLimit
from scheduler_worker.core.block_pool import BlockPool
from scheduler_worker.core.bounds import Bounds
from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.fairness import Ledger
from scheduler_worker.core.growth import rest_of
from scheduler_worker.core.lockstep import Lockstep
from scheduler_worker.core.output_lengths import OutputLengths
from scheduler_worker.core.plan import Capacity, Event, EventKind, Finished, Reason, StepPlan
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.core.preemption import Victim, return_cost, why_not
from scheduler_worker.core.queues import ClassQueues
from scheduler_worker.core.sequence import FinishReason, Sequence, SequenceHeader, SequenceState

MAX_ASKED: Final = 64


@dataclass(slots=True)
class InFlight:
    """A begun plan and its chunks.

    `tpot_s`: the objective it was planned for, None where nobody decodes; `num_rows`: how many ran when it was begun,
    those included that end with it; `dropped`: its tokens for these are worth nothing; `closing`: it books their last
    token.
    """

    plan: StepPlan
    chunks: StepChunks
    tpot_s: float | None = None
    num_rows: int = 0
    dropped: set[str] = field(default_factory=set)
    closing: list[Sequence] = field(default_factory=list)


class State:
    """The parts and the few operations that more than one beat of a step needs."""

    def __init__(self, policy: Policy, capacity: Capacity, cost_model: CostModel, policy_version: int) -> None:
        self.policy = policy
        self.policy_version = policy_version
        self.capacity = capacity
        self.cost_model = cost_model
        self.step = 0
        self.max_step_tokens = 1 << 30
        self.ledger = Ledger(policy)
        self.lockstep = Lockstep(capacity.block_size)
        self.pool = BlockPool(capacity.num_blocks, capacity.block_size)
        self.batch_limit = BatchLimit(policy.batch_limit, capacity.num_slots)
        self.bounds = Bounds()
        self.waiting = ClassQueues(self.ledger)
        self.ready = ClassQueues(self.ledger)
        self.sequences: dict[str, Sequence] = {}
        self.catching_up: dict[str, Sequence] = {}
        self.closing: dict[str, Sequence] = {}
        self.vacating: dict[str, Sequence] = {}
        self.limbo: list[Sequence] = []
        self.returning: dict[str, SequenceHeader] = {}
        self.in_flight: deque[InFlight] = deque()
        self.free_slots: list[int] = list(range(capacity.num_slots))
        self.notices: list[str] = []
        self.unanswered: dict[str, Event] = {}
        self.num_checkpoint_blocks = 0
        self.outputs: dict[str, OutputLengths] = {}
        self._classes = {one.id: one for one in policy.classes}
        self._tightest: tuple[tuple[str, ...], float] | None = None

    def use_policy(self, policy: Policy, version: int) -> None:
        """Take over the rules; sequences keep their places until they are asked to move."""
        self.policy, self.policy_version = policy, version
        self._classes = {one.id: one for one in policy.classes}
        self._tightest = None
        self.ledger.set_policy(policy)
        self.batch_limit.set_rules(policy.batch_limit)

    def class_policy(self, class_id: str) -> ClassPolicy:
        """The rules of a class of this policy."""
        return self._classes[class_id]

    def resolve(self, class_id: str) -> ClassPolicy:
        """The class that serves `class_id` now; an id that never was one is served by the least urgent."""
        try:
            return self._classes.get(class_id) or self.policy.find(class_id)
        except KeyError:
            return self.policy.least_urgent()

    @property
    def num_running(self) -> int:
        """Sequences that take part in the next step."""
        return len(self.lockstep) + len(self.catching_up)

    @property
    def row_limit(self) -> int:
        """How many sequences may run at once: slots, the batch limit, and a token for each."""
        return min(self.capacity.num_slots, self.batch_limit.limit, self.token_budget)

    @property
    def token_budget(self) -> int:
        """Tokens of one step at most."""
        return min(self.policy.step.max_num_batched_tokens, self.max_step_tokens)

    @property
    def tightest_tpot_s(self) -> float:
        """The tightest TPOT objective of the classes that decode, of which there is one at least."""
        classes = self.lockstep.classes
        if self._tightest is None or self._tightest[0] is not classes:
            self._tightest = classes, min(self._classes[one].slo.tpot_s for one in classes)
        return self._tightest[1]

    def output_lengths(self, class_id: str) -> OutputLengths:
        """What is known of the class's answers."""
        lengths = self.outputs.get(class_id)
        if lengths is None:
            lengths = self.outputs[class_id] = OutputLengths()
        return lengths

    def set_deadlines(self, sequence: Sequence) -> None:
        """Absolute times by which it must start, from its class's rules and the cost model as it is now."""
        rules = self.class_policy(sequence.class_id)
        sequence.rank = rules.rank
        sequence.deadline_at = sequence.arrived_at + rules.slo.ttft_s
        sequence.prefill_s = self.cost_model.prefill_s(sequence.num_tokens)
        since, bound_s = sequence.arrived_at, rules.max_wait_s
        if sequence.parked_at is not None:
            since, bound_s = sequence.parked_at, rules.max_parked_s
        sequence.bound_at = since + bound_s
        sequence.tier_at = sequence.bound_at - self.policy.starvation.guard * bound_s
        sequence.latest_start_at = sequence.deadline_at - sequence.prefill_s
        if sequence.has_first_token:
            sequence.latest_start_at = float("inf")

    def work_of(self, sequence: Sequence) -> float:
        """Cost tokens of its prompt and of a mean answer."""
        num_output = self.output_lengths(sequence.class_id).mean(sequence.max_tokens)
        return self.ledger.prompt_cost(sequence.num_prompt_tokens, 0) + num_output * self.ledger.row_cost

    def missed_bound(self, sequence: Sequence, now: float) -> Event:
        """The sequence waits past its bound, or has until now."""
        served, slowness = self.ledger.total_service(), self.cost_model.slowness
        reason, numbers = self.bounds.cause(sequence, self.policy, served, slowness, now)
        if sequence.parked_at is None:
            numbers["waited_s"] = now - sequence.arrived_at
        else:
            numbers["parked_s"] = now - sequence.parked_at
        return Event(
            now, EventKind.BOUND_MISSED, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers
        )

    def blocks_promised_to(self, sequence: Sequence) -> int:
        """Blocks for its tokens and for the growth that the policy reserves (not in lockstep)."""
        num_sampled, max_tokens = sequence.num_sampled, sequence.max_tokens
        num_tokens = sequence.num_prompt_tokens + num_sampled
        left = self.output_lengths(sequence.class_id).expected(max_tokens) - num_sampled
        most = max_tokens - 1 - num_sampled
        if left > 0 and most > 0:
            growth = int(left * self.policy.memory.reserve_growth)
            num_tokens += growth if growth < most else most
        return -(-num_tokens // self.capacity.block_size)

    def rest_of(self, sequence: Sequence) -> int:
        """Tokens that it is expected to make yet, as far as the policy reserves for them."""
        expected = self.output_lengths(sequence.class_id).expected(sequence.max_tokens)
        num_sampled = self.lockstep.num_sampled(sequence)
        share = self.policy.memory.reserve_growth
        return rest_of(sequence, expected, num_sampled, share, self.capacity.block_size)

    def promise(self, sequence: Sequence, num_blocks: int) -> None:
        """Keep so many blocks, held ones included, for the sequence."""
        self.pool.num_promised -= _gap(sequence)
        sequence.promised_blocks = num_blocks
        self.pool.num_promised += _gap(sequence)

    def hold(self, sequence: Sequence, blocks: tuple[int, ...], num_hits: int = 0) -> None:
        """Append blocks to the sequence's table."""
        self.pool.num_promised -= min(_gap(sequence), len(blocks))
        self.pool.hold(blocks, num_hits)
        sequence.blocks.extend(blocks)

    def hold_all(self, grown: list[tuple[Sequence, tuple[int, ...]]]) -> None:
        """Append blocks, of which nothing is known, to the tables of these sequences."""
        num_kept = 0
        for sequence, blocks in grown:
            num_kept += min(_gap(sequence), len(blocks))
            sequence.blocks.extend(blocks)
        self.pool.num_promised -= num_kept
        self.pool.hold([block for _, blocks in grown for block in blocks])

    def vacate(self, sequence: Sequence) -> None:
        """Free its slot, its blocks and what was promised to it."""
        pool, blocks = self.pool, sequence.blocks
        if sequence.promised_blocks > len(blocks):
            pool.num_promised -= sequence.promised_blocks - len(blocks)
        sequence.promised_blocks = 0
        pool.release(blocks)
        sequence.blocks = []
        if sequence.slot is not None:
            insort(self.free_slots, sequence.slot)
            sequence.slot = None

    def drop_checkpoint(self, sequence: Sequence) -> None:
        """Forget the copy of its blocks on the host, if there is one."""
        self.num_checkpoint_blocks -= sequence.checkpoint_blocks
        sequence.checkpoint_blocks = 0

    def stop_running(self, sequence: Sequence, *, ends: bool = False) -> None:
        """Take it out of the rows of coming steps."""
        if self.lockstep.rows.get(sequence.seq_id) is sequence:
            self.lockstep.leave(sequence, ends=ends)
            self.ledger.join(sequence, -1)
        else:
            self.catching_up.pop(sequence.seq_id, None)
            self.closing.pop(sequence.seq_id, None)

    def as_victim(self, sequence: Sequence) -> Victim:
        """What it would cost to bring the running sequence back."""
        num_computed = self.lockstep.num_computed(sequence)
        num_blocks = self.pool.blocks_for(num_computed)
        recompute_s = self.cost_model.prefill_s(num_computed)
        left = self.capacity.num_swap_blocks - self.num_checkpoint_blocks
        cost, swaps = return_cost(num_blocks, recompute_s, self.capacity, self.policy.memory.swap, left)
        return Victim(sequence, cost, swaps, len(sequence.blocks))

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        error: str | None = None,
        num_missing: int = 0,
    ) -> Finished:
        """End a sequence in any state; blocks that a step in flight uses are kept in limbo until it is applied.

        `num_missing` of its tokens were booked and did not come.
        """
        num_generated = self.lockstep.num_generated(sequence) - num_missing
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        elif sequence.seq_id in self.ready.sequences:
            self.ready.remove(sequence)
        self.stop_running(sequence, ends=True)
        self.vacating.pop(sequence.seq_id, None)
        del self.sequences[sequence.seq_id]
        self.drop_checkpoint(sequence)
        sequence.move(SequenceState.FINISHED)
        self.ledger.leave(sequence)
        self.limbo.append(sequence)
        for flying in self.in_flight:
            flying.dropped.add(sequence.seq_id)
        return _finished(sequence, reason, num_generated, now, error)

    def release_ended(self) -> list[Sequence]:
        """Free what no step in flight names any more; returns those freed."""
        if not self.limbo:
            return []
        applied = self.lockstep.applied
        freed = [one for one in self.limbo if one.last_step <= applied]
        self.limbo = [one for one in self.limbo if one.last_step > applied] if len(freed) < len(self.limbo) else []
        for sequence in freed:
            self.vacate(sequence)
        return freed


def refusal(state: State, sequence: Sequence, by_rank: int, now: float) -> Reason | None:
    """Why a running sequence does not yield to one of rank `by_rank`; None when it may."""
    if sequence.rank <= by_rank:
        return Reason.AS_URGENT  # as `why_not` would say, without counting tokens: asked of many rows in a step
    rules = state.class_policy(sequence.class_id).preemption
    return why_not(sequence, state.lockstep.num_generated(sequence), by_rank, rules, now)


def why_nobody_yields(
    state: State, rows: Iterable[Sequence], by_rank: int, now: float
) -> tuple[Reason, int] | None:
    """The commonest reason of the first of `rows`, and how many of them have it; None when there are no rows.

    Where all of them would yield, it is the blocks that they would free together.
    """
    asked = [refusal(state, one, by_rank, now) for one in islice(rows, MAX_ASKED)]
    reasons = [one for one in asked if one is not None] or [Reason.NO_BLOCKS] * len(asked)
    reason = max(reasons, key=lambda one: (reasons.count(one), one.value), default=None)
    return None if reason is None else (reason, reasons.count(reason))


def not_preempted(sequence: Sequence, why: tuple[Reason, int], now: float) -> Event:
    """Nobody yields to the urgent sequence."""
    reason, num_rows = why
    numbers: dict[str, float | int | str] = {"left_s": sequence.latest_start_at - now, "num_rows": num_rows}
    kind = EventKind.NOT_PREEMPTED
    return Event(now, kind, reason, sequence.seq_id, sequence.class_id, sequence.tenant, numbers)


def is_told(sequence: Sequence, kind: EventKind) -> bool:
    """Whether an event of this kind has been told of the sequence."""
    return any(told == kind for told, _ in sequence.told)


def yielding(state: State, by_rank: int, now: float) -> list[Sequence]:
    """Running sequences that may yield to one of rank `by_rank`. Rows are looked at from the latest to join back to
    the first that has decoded for longer than any class lets a victim."""
    most = max(one.preemption.max_generated_tokens for one in state.policy.classes)
    rows = [*state.catching_up.values(), *_latest_to_join(state.lockstep, most)]
    return [one for one in rows if one.rank > by_rank and refusal(state, one, by_rank, now) is None]


def _latest_to_join(lockstep: Lockstep, num_steps: int) -> Iterator[Sequence]:
    """Rows that have decoded for at most so many applied steps, the latest first."""
    since = lockstep.applied - num_steps
    return takewhile(lambda one: one.join_step >= since, reversed(lockstep.rows.values()))


def _gap(sequence: Sequence) -> int:
    return max(0, sequence.promised_blocks - len(sequence.blocks))


def _finished(
    sequence: Sequence, reason: FinishReason, num_generated: int, now: float, error: str | None
) -> Finished:
    started, first_token = sequence.first_scheduled_at, sequence.first_token_at
    if sequence.parked_at is not None:
        sequence.parked_s += now - sequence.parked_at
    return Finished(  # by position: names would take twice as long
        sequence.seq_id,
        sequence.class_id,
        reason,
        num_generated,
        error,
        None if started is None else started - sequence.arrived_at,
        None if started is None or first_token is None else first_token - started,
        None if first_token is None else now - first_token,
        sequence.parked_s,
        sequence.num_preemptions,
        sequence.num_cached_tokens,
    )
