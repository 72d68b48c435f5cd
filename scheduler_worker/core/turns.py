"""Who is next for a slot. One pass over a queue, in order of decision:

1. the starvation tier: those near their wait bound, the nearest first, while their class has tier credit;
2. rescues: those about to miss a TTFT objective that they would meet if served now, by rank, then deadline, while
   their class's lead over the least-served waiting class stays within bounds, and nobody of their class starves: a
   bound is promised, an objective may be missed now and then;
3. turns: the class with the least counter, in it the tenant with the least, in it the earliest deadline.

What is granted during the pass counts at once (`charge`), so that ten grants are shared as ten turns would be.
The pass changes nothing that outlives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush, heapreplace, merge

from scheduler_worker.core.fairness import Account, Key, Ledger
from scheduler_worker.core.plan import Reason
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.queues import ClassQueue, ClassQueues, TenantQueue
from scheduler_worker.core.sequence import Sequence

Extra = dict[str, float]


def is_urgent(sequence: Sequence, now: float, within_s: float) -> bool:
    """Whether its TTFT objective is about to be missed and would be met if it were served now."""
    return now <= sequence.latest_start_at <= now + within_s and not sequence.has_first_token


class Turns:
    """One pass over `queues`. Use as a context manager: leaving restores what looking ahead took out.

    `has_urgent`, known after `pressing`: whether anybody is about to miss a TTFT objective, granted by now or not.
    """

    def __init__(
        self, queues: ClassQueues, ledger: Ledger, policy: Policy, now: float, extra: Extra | None = None
    ) -> None:
        self._queues = queues
        self._ledger = ledger
        self._policy = policy
        self._now = now
        self._extra: Extra = dict(extra) if extra else {}
        self._tenant_extra: dict[str, Extra] = {}
        self._taken: set[str] = set()
        self._refused: set[str] = set()
        self.has_urgent = False
        self._classes = {class_id: queue for class_id, queue in queues.classes.items() if queue.by_age.num_live}
        self._class_turns: dict[str, _ClassTurn] = {}
        self._standings: dict[str, Key] | None = None

    def _standings_now(self) -> dict[str, Key]:
        """Of the classes that wait, looked up by the first who compares them."""
        if self._standings is None:
            waiting = [one for one in self._ledger.classes.values() if one.num_queued]
            self._standings = {one.key: self._standing(one) for one in waiting}
        return self._standings

    def _standing(self, account: Account) -> Key:
        """The class with the least is next; ties end at the rank."""
        counter, number = account.order(self._ledger.step)
        return counter + self._extra.get(account.key, 0.0), number

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        for turn in self._class_turns.values():
            turn.restore()

    def __iter__(self) -> Iterator[tuple[Sequence, Reason]]:
        """Sequences in order with the rule that put them there; each at most once."""
        yield from self.pressing()
        yield from self.in_turn()

    def pressing(self) -> Iterator[tuple[Sequence, Reason]]:
        """Those who go ahead of the turn: starving, then to be rescued.

        Who is refused makes its class wait until the walk is over: what is granted meanwhile can only add to its debt,
        so that thousands who starve without credit cost one look.
        """
        until, queues = self._now + self._policy.step.rescue_within_s, self._classes.values()
        starving = [one for one in queues if (first := one.by_age.first()) is not None and first.tier_at <= self._now]
        pressed = [one for one in queues if one.is_pressed(until)]
        self.has_urgent = bool(pressed)
        if starving and self._policy.starvation.enabled:
            yield from self._permitted(self._walk_starving(starving), Reason.STARVING)
        if pressed := [queue for queue in pressed if queue not in starving] if starving else pressed:
            yield from self._permitted(self._walk_urgent(pressed, until), Reason.RESCUE)

    def _permitted(self, walk: Iterator[Sequence], reason: Reason) -> Iterator[tuple[Sequence, Reason]]:
        self._refused.clear()
        for sequence in walk:
            if sequence.seq_id in self._taken or sequence.class_id in self._refused:
                continue
            if self._may(sequence, reason):
                self._taken.add(sequence.seq_id)
                yield sequence, reason
            else:
                self._refused.add(sequence.class_id)

    def in_turn(self) -> Iterator[tuple[Sequence, Reason]]:
        """The others, once `pressing` is exhausted."""
        reason = Reason.TURN if self._others_wait() else Reason.ONLY_CLASS_WAITING
        while (in_turn := self._next_turn()) is not None:
            self._taken.add(in_turn.seq_id)
            yield in_turn, reason

    def charge(self, sequence: Sequence, cost: float) -> None:
        """The sequence was granted service of this cost."""
        class_id, tenant_id = sequence.class_id, sequence.tenant
        account = self._ledger.classes[class_id]
        self._extra[class_id] = self._extra.get(class_id, 0.0) + cost / account.weight
        if self._standings is not None:
            self._standings[class_id] = self._standing(account)
        granted = self._tenant_extra.setdefault(class_id, {})
        granted[tenant_id] = granted.get(tenant_id, 0.0) + cost / account.tenants[tenant_id].weight

    def _may(self, sequence: Sequence, reason: Reason) -> bool:
        if reason is Reason.STARVING:
            account = self._ledger.classes[sequence.class_id]
            granted = self._extra.get(account.key, 0.0) * account.weight
            return not self._others_wait() or account.tier_credit >= granted
        standings = self._standings_now()
        lead = standings[sequence.class_id][0] - min(standings.values())[0]
        return lead <= self._policy.fairness.max_lead_tokens

    def _others_wait(self) -> bool:
        """Whether several classes wait anywhere; `queues` may hold only those that this worker has claimed."""
        return len([one for one in self._ledger.classes.values() if one.num_queued]) > 1

    def _walk_starving(self, queues: list[ClassQueue]) -> Iterator[Sequence]:
        walks = [self._starving_in(one) for one in queues]
        return merge(*walks, key=lambda sequence: (sequence.bound_at, sequence.number))

    def _starving_in(self, queue: ClassQueue) -> Iterator[Sequence]:
        for sequence in queue.by_age.in_order():
            if sequence.tier_at > self._now or sequence.class_id in self._refused:
                return
            yield sequence

    def _walk_urgent(self, pressed: list[ClassQueue], until: float) -> Iterator[Sequence]:
        within_s = self._policy.step.rescue_within_s
        for queue in sorted(pressed, key=_rank_of) if len(pressed) > 1 else pressed:
            for sequence in queue.by_latest_start.in_order():
                if sequence.latest_start_at > until or sequence.class_id in self._refused:
                    break
                if is_urgent(sequence, self._now, within_s):
                    yield sequence

    def _next_turn(self) -> Sequence | None:
        classes = self._classes
        while classes and len(self._taken) < len(self._queues.sequences):
            class_id = next(iter(classes)) if len(classes) == 1 else min(classes, key=self._standings_now().__getitem__)
            sequence = self._turn_of(class_id).next(self._taken)
            if sequence is not None:
                return sequence
            del classes[class_id]
        return None

    def _turn_of(self, class_id: str) -> _ClassTurn:
        turn = self._class_turns.get(class_id)
        if turn is None:
            queue = self._queues.classes[class_id]
            granted = self._tenant_extra.setdefault(class_id, {})
            turn = self._class_turns[class_id] = _ClassTurn(self._ledger, queue, granted)
        return turn


def _rank_of(queue: ClassQueue) -> int:
    first = queue.by_age.first()
    return first.rank if first is not None else 0


class _ClassTurn:
    """The tenants of one class in turn. Tenants looked at are out of the class's heap until `restore`."""

    def __init__(self, ledger: Ledger, queue: ClassQueue, extra: Extra) -> None:
        self._ledger = ledger
        self._line = queue.by_counter
        self._extra = extra
        self._out: list[TenantQueue] = []
        self._heap: list[tuple[Key, TenantQueue, Iterator[Sequence]]] = []

    def _order(self, tenant: TenantQueue) -> Key:
        counter, number = tenant.account.order(self._ledger.step)
        return counter + self._extra.get(tenant.account.key, 0.0), number

    def next(self, taken: set[str]) -> Sequence | None:
        """The next sequence of the tenant with the least counter."""
        if not self._heap and (first := self._first(taken)) is not None:
            return first
        while self._surface():
            for sequence in self._heap[0][2]:
                if sequence.seq_id not in taken:
                    return sequence
            heappop(self._heap)
        return None

    def _first(self, taken: set[str]) -> Sequence | None:
        """Of the least tenant, while nothing was granted to it: most passes need no more, and take nobody out."""
        least = self._line.least()
        if least is None or least.account.key in self._extra:
            return None
        first = least.first()
        return first if first is not None and first.seq_id not in taken else None

    def _surface(self) -> bool:
        """Bring the least tenant to the top; what was charged meanwhile moves the others down."""
        heap = self._heap
        while True:
            least = self._line.least(below=heap[0][0] if heap else None)
            if least is not None:
                self._out.append(self._line.pop())
                heappush(heap, (self._order(least), least, least.in_order()))
            elif not heap:
                return False
            else:
                stored, tenant, walk = heap[0]
                current = self._order(tenant)
                if current == stored:
                    return True
                heapreplace(heap, (current, tenant, walk))

    def restore(self) -> None:
        """Put the tenants back."""
        for tenant in self._out:
            self._line.push(tenant)
        self._out.clear()
