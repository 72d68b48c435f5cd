"""Sequences that wait for a slot: by class, tenant and deadline; every operation in O(log n).

Entries of heaps are dropped lazily: an entry lives while its token is the sequence's `queue_token` (which counts up
with every place that the sequence takes, and is negative while it waits nowhere), and heaps are rebuilt when most of
their entries are dead. Reading never disturbs them: `in_order` walks a heap from the front.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from scheduler_worker.core.fairness import Account, LeastFirst, Ledger
from scheduler_worker.core.sequence import Sequence

Entry = tuple[float, int, int, int, Sequence]  # key, arrival number, number of the push, token, sequence
SLACK = 64


class Heap:
    """Sequences by a key, then by arrival; knows which of its entries are dead."""

    __slots__ = ("_num_pushed", "entries", "num_live")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.num_live = 0
        self._num_pushed = 0

    def push(self, key: float, sequence: Sequence) -> None:
        self._num_pushed += 1
        heappush(self.entries, (key, sequence.number, self._num_pushed, sequence.queue_token, sequence))
        self.num_live += 1

    def drop(self) -> None:
        """One of the live entries has just died."""
        self.num_live -= 1
        if len(self.entries) > 2 * self.num_live + SLACK:
            self.entries = [entry for entry in self.entries if entry[4].queue_token == entry[3]]
            heapify(self.entries)

    def first(self) -> Sequence | None:
        """The live sequence with the least key."""
        entries = self.entries
        while entries:
            _, _, _, token, sequence = entries[0]
            if sequence.queue_token == token:
                return sequence
            heappop(entries)
        return None

    def pop(self) -> None:
        """Take out the entry of what `first` has just returned."""
        heappop(self.entries)
        self.num_live -= 1

    def in_order(self) -> Iterator[Sequence]:
        """Live sequences, least key first, without disturbing the heap: O(log k) for the k-th."""
        entries = self.entries
        frontier = [(entries[0], 0)] if entries else []
        while frontier:
            (_, _, _, token, sequence), index = heappop(frontier)
            if sequence.queue_token == token:
                yield sequence
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(entries):
                    heappush(frontier, (entries[child], child))


class TenantQueue:
    """One tenant's waiting sequences in one class: those that can meet their TTFT objective, and those too late."""

    __slots__ = ("account", "fresh", "late")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.fresh = Heap()
        self.late = Heap()

    def __len__(self) -> int:
        return self.fresh.num_live + self.late.num_live

    def heap_of(self, sequence: Sequence) -> Heap:
        return self.late if sequence.is_late else self.fresh

    def first(self) -> Sequence | None:
        """The one that `in_order` begins with."""
        return self.fresh.first() or self.late.first()

    def in_order(self) -> Iterator[Sequence]:
        """Earliest deadline first; late ones behind."""
        yield from self.fresh.in_order()
        yield from self.late.in_order()


class ClassQueue:
    """One class's waiting sequences: by tenant, by the last moment to start, by the age that makes them starve."""

    def __init__(self, ledger: Ledger) -> None:
        self.tenants: dict[str, TenantQueue] = {}
        self.by_counter: LeastFirst[TenantQueue] = LeastFirst(
            lambda one: one.account.order(ledger.step), lambda one: len(one) > 0
        )
        self.by_latest_start = Heap()
        self.by_age = Heap()
        self.num_late = 0

    def __len__(self) -> int:
        return self.by_age.num_live

    def is_pressed(self, until: float) -> bool:
        """Whether the last moment to start passes for somebody until then."""
        first = self.by_latest_start.first()
        return first is not None and first.latest_start_at <= until


class ClassQueues:
    """All waiting sequences of one kind (not yet claimed, or ready to start on this worker)."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.classes: dict[str, ClassQueue] = {}
        self.sequences: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self.sequences)

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait; its deadlines are set."""
        sequence.queue_token = abs(sequence.queue_token) + 1
        self.sequences[sequence.seq_id] = sequence
        queue = self.classes.get(sequence.class_id)
        if queue is None:
            queue = self.classes[sequence.class_id] = ClassQueue(self._ledger)
        queue.by_age.push(sequence.tier_at, sequence)
        if sequence.is_late:
            queue.num_late += 1
        else:
            queue.by_latest_start.push(sequence.latest_start_at, sequence)
        self._add_to_tenant(queue, sequence)
        self._ledger.queued(sequence, 1)

    def _add_to_tenant(self, queue: ClassQueue, sequence: Sequence) -> None:
        tenant = queue.tenants.get(sequence.tenant)
        if tenant is None:
            account = self._ledger.accounts_of(sequence)[1]
            tenant = queue.tenants[sequence.tenant] = TenantQueue(account)
        was_empty = len(tenant) == 0
        tenant.heap_of(sequence).push(sequence.deadline_at, sequence)
        if was_empty:
            queue.by_counter.push(tenant)

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out, from wherever it stands."""
        del self.sequences[sequence.seq_id]
        sequence.queue_token = -sequence.queue_token
        queue = self.classes[sequence.class_id]
        queue.by_age.drop()
        if sequence.is_late:
            queue.num_late -= 1
        else:
            queue.by_latest_start.drop()
        tenant = queue.tenants[sequence.tenant]
        tenant.heap_of(sequence).drop()
        if not len(tenant):
            del queue.tenants[sequence.tenant]
        self._ledger.queued(sequence, -1)

    def take_all(self) -> list[Sequence]:
        """Everybody, in the order in which they came; nobody waits here any more."""
        sequences = list(self.sequences.values())
        for sequence in sequences:
            sequence.queue_token = -sequence.queue_token
            self._ledger.queued(sequence, -1)
        self.sequences.clear()
        self.classes.clear()
        return sequences

    def presses(self, now: float, within_s: float) -> bool:
        """Whether somebody goes ahead of the turn: starves, or is about to miss a TTFT objective."""
        return self.has_urgent(now, within_s) or any(
            (first := queue.by_age.first()) is not None and first.tier_at <= now for queue in self.classes.values()
        )

    def has_urgent(self, now: float, within_s: float) -> bool:
        """Whether somebody may be about to miss a TTFT objective; after `advance`."""
        return any(queue.is_pressed(now + within_s) for queue in self.classes.values())

    def advance(self, now: float) -> None:
        """Those that can no longer meet their TTFT objective go behind those that can."""
        for queue in self.classes.values():
            while (first := queue.by_latest_start.first()) and first.latest_start_at < now:
                queue.by_latest_start.pop()
                self._mark_late(queue, first)

    def _mark_late(self, queue: ClassQueue, sequence: Sequence) -> None:
        """A new token kills the entries among the fresh ones."""
        tenant = queue.tenants[sequence.tenant]
        tenant.fresh.drop()
        queue.by_age.drop()
        sequence.is_late = True
        sequence.queue_token = abs(sequence.queue_token) + 1
        tenant.late.push(sequence.deadline_at, sequence)
        queue.by_age.push(sequence.tier_at, sequence)
        queue.num_late += 1
