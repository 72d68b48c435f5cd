"""The schedulers that operators know, on the same engine model as ours: what a change to Tidegate is measured against.

| name | waiting order | what it is |
|---|---|---|
| `fcfs` | arrival | continuous batching as engines ship it: running first, then the queue, chunked prefill |
| `static` | arrival | a batch is filled once and runs until its longest member ends |
| `priority` | class rank, then arrival | strict; preempts for memory only; optional queue bound, optional displacing |
| `vtc` | the tenant with the least virtual token counter | arXiv 2401.00588, algorithm 2: counters lifted on return |
| `lcf` | the tenant with the least counter | the same without the lift: idle tenants bank credit |

All keep one step in flight. With known lengths a sequence starts when the peak of what will be held fits; otherwise
blocks are allocated as they are needed, and the last of the service order is recomputed when they run out.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from scheduler_worker.core.plan import (
    Applied,
    Capacity,
    Chunk,
    Event,
    EventKind,
    Finished,
    Reason,
    Snapshot,
    StepPlan,
    StepResult,
    StepShape,
    TokensEmitted,
)
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.sequence import FinishReason, SequenceHeader

WATERMARK: Final = 0.01


@dataclass(slots=True, eq=False)
class _Running:
    """A sequence with a slot. `reserved` blocks are its own, used or not."""

    header: SequenceHeader
    key: tuple[float, ...]
    slot: int = -1
    num_computed: int = 0
    num_generated: int = 0
    num_blocks: int = 0
    reserved: int = 0
    done: bool = False

    @property
    def num_known(self) -> int:
        return self.header.num_prompt_tokens + self.num_generated

    @property
    def num_left(self) -> int:
        """Tokens it may yet make."""
        return self.header.max_tokens - self.header.num_generated_tokens - self.num_generated


class _Queue(Protocol):
    """Waiting headers in a baseline's order."""

    def push(self, header: SequenceHeader) -> None: ...
    def peek(self) -> SequenceHeader | None: ...
    def pop(self) -> SequenceHeader: ...
    def discard(self, seq_id: str) -> bool: ...
    def generated(self, header: SequenceHeader, num_tokens: int) -> None: ...
    def head(self, limit: int) -> list[str]: ...
    def __len__(self) -> int: ...


class _KeyedQueue:
    """A heap by a fixed key; discarded entries are dropped when they surface."""

    def __init__(self, key: Callable[[SequenceHeader], tuple[float, ...]]) -> None:
        self._key = key
        self._heap: list[tuple[tuple[float, ...], SequenceHeader]] = []
        self._alive: dict[str, SequenceHeader] = {}

    def push(self, header: SequenceHeader) -> None:
        self._alive[header.seq_id] = header
        heapq.heappush(self._heap, (self._key(header), header))

    def peek(self) -> SequenceHeader | None:
        while self._heap and self._alive.get(self._heap[0][1].seq_id) is not self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> SequenceHeader:
        header = self.peek()
        assert header is not None
        heapq.heappop(self._heap)
        del self._alive[header.seq_id]
        return header

    def discard(self, seq_id: str) -> bool:
        return self._alive.pop(seq_id, None) is not None

    def generated(self, header: SequenceHeader, num_tokens: int) -> None:
        """Order by key alone: service changes nothing."""

    def head(self, limit: int) -> list[str]:
        """The first in order, without disturbing the heap: O(log k) for the k-th."""
        frontier = [(self._heap[0], 0)] if self._heap else []
        ids: list[str] = []
        while frontier and len(ids) < limit:
            (_, header), index = heapq.heappop(frontier)
            if self._alive.get(header.seq_id) is header:
                ids.append(header.seq_id)
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(self._heap):
                    heapq.heappush(frontier, (self._heap[child], child))
        return ids

    def worst(self) -> SequenceHeader:
        """The last to be served; O(waiting), used only where the queue is bounded."""
        return max(self._alive.values(), key=self._key)

    def __len__(self) -> int:
        return len(self._alive)


class _CounterQueue:
    """One FIFO per tenant, served by the least virtual token counter (VTC, algorithm 2)."""

    def __init__(self, prompt_cost: float, output_cost: float, lift: bool) -> None:
        self._prompt_cost = prompt_cost
        self._output_cost = output_cost
        self._lift = lift
        self._counters: dict[str, float] = {}
        self._fifos: dict[str, deque[SequenceHeader]] = {}
        self._last_left = ""
        self._size = 0

    def push(self, header: SequenceHeader) -> None:
        fifo = self._fifos.setdefault(header.tenant, deque())
        if not fifo:
            self._arrive_idle(header.tenant)
        fifo.append(header)
        self._size += 1

    def _arrive_idle(self, tenant: str) -> None:
        own = self._counters.setdefault(tenant, 0.0)
        if not self._lift:
            return
        waiting = [self._counters[one] for one, fifo in self._fifos.items() if fifo]
        floor = min(waiting) if waiting else self._counters.get(self._last_left, 0.0)
        self._counters[tenant] = max(own, floor)

    def _least(self) -> deque[SequenceHeader] | None:
        waiting = [
            (self._counters[one], fifo[0].arrival_number, fifo) for one, fifo in self._fifos.items() if fifo
        ]
        return min(waiting, key=lambda entry: entry[:2])[2] if waiting else None

    def peek(self) -> SequenceHeader | None:
        fifo = self._least()
        return fifo[0] if fifo else None

    def pop(self) -> SequenceHeader:
        fifo = self._least()
        assert fifo
        header = fifo.popleft()
        self._size -= 1
        self._counters[header.tenant] += self._prompt_cost * header.num_prompt_tokens
        if not fifo:
            self._last_left = header.tenant
        return header

    def discard(self, seq_id: str) -> bool:
        for fifo in self._fifos.values():
            for header in fifo:
                if header.seq_id == seq_id:
                    fifo.remove(header)
                    self._size -= 1
                    return True
        return False

    def generated(self, header: SequenceHeader, num_tokens: int) -> None:
        self._counters[header.tenant] += self._output_cost * num_tokens

    def head(self, limit: int) -> list[str]:
        ordered = sorted((self._counters[one], one) for one, fifo in self._fifos.items() if fifo)
        ids: list[str] = []
        for _, tenant in ordered:
            if len(ids) >= limit:
                break
            ids += [header.seq_id for header in list(self._fifos[tenant])[: limit - len(ids)]]
        return ids

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True, slots=True)
class BaselineOptions:
    """What a baseline may be told. `queue_bound` refuses (or, with `displace`, throws out the worst) beyond it.

    `decodes_between`: prompts are computed in steps of their own, and only after at least so many decode steps, as
    the VTC artifact's engine does; 0: they join the decodes in any step.
    """

    known_lengths: bool = False
    queue_bound: int | None = None
    displace: bool = False
    max_num_batched_tokens: int = 2048
    max_chunk_tokens: int = 512
    decodes_between: int = 0


@dataclass(slots=True)
class _Books:
    """What `plan_step` decided, for `begin` to book."""

    started: list[SequenceHeader] = field(default_factory=list)
    evicted: list[_Running] = field(default_factory=list)


class BaselineScheduler:
    """Continuous batching with a pluggable waiting order; implements `SchedulerVerbs` at depth 1."""

    def __init__(self, name: str, policy: Policy, capacity: Capacity, options: BaselineOptions) -> None:
        self._policy = policy
        self._capacity = capacity
        self._options = options
        self._ranks = {one.id: one.rank for one in policy.classes}
        self._order: Callable[[SequenceHeader], tuple[float, ...]] = (
            self._by_rank if name == "priority" else self._by_arrival
        )
        self._queue = self._make_queue(name)
        self._running: list[_Running] = []
        self._free_blocks = capacity.num_blocks
        self._free_slots = list(range(capacity.num_slots))
        self._step = 0
        self._in_flight: StepPlan | None = None
        self._num_decodes = 0
        self._books = _Books()

    def _make_queue(self, name: str) -> _Queue:
        fairness = self._policy.fairness
        if name in ("vtc", "lcf"):
            return _CounterQueue(fairness.prompt_token_cost, fairness.output_token_cost, lift=name == "vtc")
        return _KeyedQueue(self._order)

    def _by_arrival(self, header: SequenceHeader) -> tuple[float, ...]:
        return (header.arrival_number,)

    def _by_rank(self, header: SequenceHeader) -> tuple[float, ...]:
        return (self._ranks[header.class_id], header.arrival_number)

    def add(self, header: SequenceHeader, now: float) -> Applied:
        """Queue it, or refuse it (or, with `displace`, the worst one waiting) when the queue is full."""
        if self._blocks(header.num_prompt_tokens + header.max_tokens) > self._capacity.num_blocks:
            return _refused(header, now, Reason.TOO_LONG)
        self._queue.push(header)
        bound = self._options.queue_bound
        if bound is None or len(self._queue) <= bound:
            return Applied()
        worst = self._displaced(header)
        self._queue.discard(worst.seq_id)
        return _refused(worst, now, Reason.QUEUE_FULL)

    def _displaced(self, newcomer: SequenceHeader) -> SequenceHeader:
        if self._options.displace and isinstance(self._queue, _KeyedQueue):
            return self._queue.worst()
        return newcomer

    def withdraw(self, seq_ids: Iterable[str], now: float) -> Applied:
        """Another worker has them."""
        for seq_id in seq_ids:
            self._queue.discard(seq_id)
        return Applied()

    def cancel(self, seq_id: str, now: float) -> Applied:
        """Baselines replay traces; a trace has no cancellations beyond the waiting queue."""
        self._queue.discard(seq_id)
        return Applied()

    def claim_candidates(self, now: float) -> tuple[str, ...]:
        """The head of the queue, as many as there are free slots."""
        return tuple(self._queue.head(len(self._free_slots)))

    def claim(self, seq_ids: Iterable[str], now: float) -> None:
        """One worker, one queue: nothing to note."""

    def plan_step(self, now: float) -> StepPlan | None:
        """Running sequences first, in service order, then the queue's head while slots, budget and blocks last.

        What is planned is taken from the queue at once: the simulator begins every plan that it asks for.
        """
        if self._in_flight is not None:
            return None
        draft = _Draft(self._free_blocks, self._options.max_num_batched_tokens)
        books = _Books()
        if self._options.decodes_between:
            self._plan_apart(draft, books)
        else:
            self._start_waiting(draft, books, self._serve_running(draft, books))
        if not draft.chunks:
            return None
        self._books = books
        return StepPlan(self._step, 0, now, tuple(draft.chunks), shape=self._shape(draft))

    def _plan_apart(self, draft: _Draft, books: _Books) -> None:
        """New prompts alone if it is their turn and any has room, else the running sequences."""
        if not self._running or self._num_decodes >= self._options.decodes_between:
            self._start_waiting(draft, books, self._running)
        if draft.chunks:
            self._num_decodes = 0
        else:
            self._serve_running(draft, books)
            self._num_decodes += 1

    def _serve_running(self, draft: _Draft, books: _Books) -> list[_Running]:
        running = sorted((one for one in self._running if not one.done), key=lambda one: one.key)
        index = 0
        while index < len(running):
            sequence = running[index]
            while (size := self._chunk_size(sequence, draft)) is None:
                victim = running.pop()
                books.evicted.append(victim)
                draft.free_blocks += victim.reserved
                if victim is sequence:
                    return running
            if size:
                draft.take(sequence, size, self._blocks(sequence.num_computed + size))
            index += 1
        return running

    def _chunk_size(self, sequence: _Running, draft: _Draft) -> int | None:
        """Tokens that fit the budget; None when blocks are missing for them."""
        want = min(sequence.num_known - sequence.num_computed, draft.budget, self._options.max_chunk_tokens)
        missing = self._blocks(sequence.num_computed + want) - sequence.reserved
        return want if missing <= draft.free_blocks else None

    def _start_waiting(self, draft: _Draft, books: _Books, running: list[_Running]) -> None:
        slots = self._capacity.num_slots - len(running)
        while slots and draft.budget and not books.evicted and (header := self._queue.peek()) is not None:
            newcomer = self._newcomer(header, draft)
            if newcomer is None:
                return
            self._queue.pop()
            books.started.append(header)
            newcomer.slot = self._free_slots.pop()
            self._running.append(newcomer)
            slots -= 1

    def _newcomer(self, header: SequenceHeader, draft: _Draft) -> _Running | None:
        sequence = _Running(header, self._order(header))
        size = min(header.num_prompt_tokens, draft.budget, self._options.max_chunk_tokens)
        if not self._has_room(sequence, draft):
            return None
        draft.take(sequence, size, self._blocks(size))
        return sequence

    def _has_room(self, newcomer: _Running, draft: _Draft) -> bool:
        if self._options.known_lengths:
            return self._peak_blocks([*self._running, newcomer]) <= self._capacity.num_blocks
        spare = int(WATERMARK * self._capacity.num_blocks) if self._running else 0
        return self._blocks(newcomer.header.num_prompt_tokens) + spare <= draft.free_blocks

    def _peak_blocks(self, sequences: list[_Running]) -> int:
        """The most blocks that these sequences will hold at once when each ends at its known length.

        With k sequences left, ordered by what they have yet to make, the one that ends next sees the k of them grown
        by its own rest: the peak is the maximum over these instants.
        """
        rest = sorted(((one.num_left, one.num_known) for one in sequences), reverse=True)
        peak = held = 0
        for count, (left, known) in enumerate(rest, start=1):
            held += self._blocks(known)
            peak = max(peak, held + count * self._blocks(left))
        return peak

    def _shape(self, draft: _Draft) -> StepShape:
        return draft.shape()

    def begin(self, plan: StepPlan) -> None:
        """Book computed tokens, blocks and evictions."""
        self._in_flight = plan
        self._step += 1
        for victim in self._books.evicted:
            self._running.remove(victim)
            self._release(victim)
            self._queue.push(_recomputing(victim))
        by_id = {one.header.seq_id: one for one in self._running}
        for chunk in plan.chunks:
            sequence = by_id[chunk.seq_id]
            sequence.num_computed += chunk.num_tokens
            grown = self._blocks(sequence.num_computed)
            sequence.num_blocks = grown
            sequence.reserved = max(sequence.reserved, grown)
        self._free_blocks = self._capacity.num_blocks - sum(one.reserved for one in self._running)

    def apply_result(self, result: StepResult, now: float) -> Applied:
        """Take the tokens; sequences that stopped or reached their length leave."""
        self._in_flight = None
        by_id = {one.header.seq_id: one for one in self._running}
        emitted: list[tuple[str, int]] = []
        finished: list[Finished] = []
        for row in result.rows:
            sequence = by_id[row.seq_id]
            if row.num_new_tokens:
                sequence.num_generated += row.num_new_tokens
                self._queue.generated(sequence.header, row.num_new_tokens)
                emitted.append((row.seq_id, row.num_new_tokens))
            if ended := _ended(sequence, row.stopped):
                sequence.done = True
                finished.append(ended)
        self._leave()
        return Applied(tokens=TokensEmitted(now, result.step, tuple(emitted)), finished=tuple(finished))

    def _leave(self) -> None:
        for sequence in [one for one in self._running if one.done]:
            self._running.remove(sequence)
            self._release(sequence)

    def _release(self, sequence: _Running) -> None:
        self._free_slots.append(sequence.slot)
        self._free_blocks += sequence.reserved

    def fail_step(self, now: float) -> Applied:
        """The simulated device has no such failure."""
        raise NotSimulated("a failed step")

    def set_policy(self, policy: Policy, version: int, now: float) -> Applied:
        """Baselines read no policy but the ranks and token costs they started with."""
        raise NotSimulated("a policy change under a baseline")

    def snapshot(self, now: float) -> Snapshot:
        """Enough for the report: how much is waiting, running and cached."""
        return Snapshot(
            at=now, step=self._step, policy_version=0, batch_limit=self._capacity.num_slots,
            batch_limit_itl_s=None, batch_limit_target_s=None, num_slots=self._capacity.num_slots,
            num_blocks=self._capacity.num_blocks,
            num_used_blocks=self._capacity.num_blocks - self._free_blocks, num_cached_blocks=0,
            classes=(), sequences=(),
        )  # fmt: skip

    def has_work(self) -> bool:
        """Whether a step could be planned now or later without a new arrival."""
        return bool(self._running) or len(self._queue) > 0

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._capacity.block_size)


class StaticScheduler(BaselineScheduler):
    """Fill a batch, run it until its longest member ends; rows that ended stay in the step as padding."""

    def _start_waiting(self, draft: _Draft, books: _Books, running: list[_Running]) -> None:
        if not self._running:
            super()._start_waiting(draft, books, running)

    def _has_room(self, newcomer: _Running, draft: _Draft) -> bool:
        """Nothing is freed before the whole batch ends, so everything is reserved at once."""
        batch = [*self._running, newcomer]
        return sum(self._blocks(one.num_known + one.num_left) for one in batch) <= self._capacity.num_blocks

    def _shape(self, draft: _Draft) -> StepShape:
        shape = draft.shape()
        padding = [one for one in self._running if one.done]
        return StepShape(
            shape.num_decode_rows + len(padding),
            shape.num_prefill_tokens,
            shape.num_kv_tokens + sum(one.num_computed for one in padding),
            shape.num_attention_pairs,
        )

    def _leave(self) -> None:
        if all(one.done for one in self._running):
            super()._leave()


class NotSimulated(RuntimeError):
    """A situation that the baselines do not model."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the baseline schedulers do not simulate {what}")


class _Draft:
    """A step being planned: what is left and what is in it."""

    def __init__(self, free_blocks: int, budget: int) -> None:
        self.free_blocks = free_blocks
        self.budget = budget
        self.chunks: list[Chunk] = []
        self._rows = self._prefill = self._kv = self._pairs = 0

    def take(self, sequence: _Running, num_tokens: int, num_blocks_after: int) -> None:
        start = sequence.num_computed
        samples = start + num_tokens == sequence.num_known
        self.budget -= num_tokens
        self.free_blocks -= max(0, num_blocks_after - sequence.reserved)
        self.chunks.append(
            Chunk(sequence.header.seq_id, sequence.slot, start, num_tokens, samples, first=start == 0)
        )
        self._kv += start + num_tokens
        if sequence.num_generated and num_tokens == 1:
            self._rows += 1
        else:
            self._prefill += num_tokens
            self._pairs += num_tokens * start + num_tokens * (num_tokens + 1) // 2

    def shape(self) -> StepShape:
        return StepShape(self._rows, self._prefill, self._kv, self._pairs)


def _ended(sequence: _Running, stopped: bool) -> Finished | None:
    header = sequence.header
    made = sequence.num_generated + header.num_generated_tokens
    if not stopped and made < header.max_tokens:
        return None
    reason = FinishReason.STOP if stopped else FinishReason.LENGTH
    return Finished(header.seq_id, header.class_id, reason, made)


def _recomputing(victim: _Running) -> SequenceHeader:
    """The evicted sequence as it waits again: its own tokens are now part of its prompt."""
    old = victim.header
    return SequenceHeader(
        seq_id=old.seq_id,
        class_id=old.class_id,
        tenant=old.tenant,
        arrival_number=old.arrival_number,
        arrived_at=old.arrived_at,
        num_prompt_tokens=old.num_prompt_tokens + victim.num_generated,
        max_tokens=old.max_tokens,
        num_generated_tokens=old.num_generated_tokens + victim.num_generated,
    )


def _refused(header: SequenceHeader, now: float, reason: Reason) -> Applied:
    event = Event(now, EventKind.REJECTED, reason, header.seq_id, header.class_id, header.tenant)
    ended = Finished(header.seq_id, header.class_id, FinishReason.FAILED, header.num_generated_tokens)
    return Applied(events=(event,), finished=(ended,))
