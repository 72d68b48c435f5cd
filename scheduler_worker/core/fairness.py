"""Virtual token counters between classes, and between the tenants of a class.

Service is counted in cost tokens (a prompt token and an output token have their own price). A counter is service
divided by weight: who has the least is served next, which shares service by weight whatever the request sizes
(virtual token counters, arXiv 2401.00588). Counters only grow. Who returns from idleness is lifted to the least
counter among those waiting or running, or, if there are none, to that of the last one that was active: idleness
earns no credit.

Decoding sequences are charged one output token a step without touching each of them: an account knows how many of
its sequences decode in lockstep, and its counter is a linear function of the step number.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

from scheduler_worker.core.policy import Policy
from scheduler_worker.core.sequence import Sequence

T = TypeVar("T")
Key = tuple[float, int]
MAX_IDLE_TENANTS = 4096


class LeastFirst(Generic[T]):
    """Members by a key that only grows, without being told when it does (a heap of lower bounds).

    `is_member` says whether an entry still counts; entries that do not are dropped when they surface, or when they
    are the greater part.
    """

    def __init__(self, key: Callable[[T], Key], is_member: Callable[[T], bool]) -> None:
        self._key = key
        self._is_member = is_member
        self._heap: list[tuple[Key, int, T]] = []
        self._inside: set[int] = set()
        self._num_pushed = 0
        self._compact_at = 64

    def push(self, member: T) -> None:
        """Let a member in, unless its entry is still there."""
        if id(member) in self._inside:
            return
        self._inside.add(id(member))
        self._num_pushed += 1
        heappush(self._heap, (self._key(member), self._num_pushed, member))
        if len(self._heap) > self._compact_at:
            self._compact()

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if self._is_member(entry[2])]
        self._inside = {id(entry[2]) for entry in self._heap}
        heapify(self._heap)
        self._compact_at = 2 * len(self._heap) + 64

    def least(self, below: Key | None = None) -> T | None:
        """The member with the least key now, if that is below a limit: what stands in the heap is a lower bound, so
        that nobody's key is looked up where the first of them is not."""
        heap = self._heap
        while heap:
            stored, pushed, member = heap[0]
            if below is not None and stored >= below:
                return None
            if not self._is_member(member):
                self.pop()
                continue
            current = self._key(member)
            if current == stored:
                return member
            heapreplace(heap, (current, pushed, member))
        return None

    def pop(self) -> T:
        """Take out the member that `least` has just returned."""
        member = heappop(self._heap)[2]
        self._inside.discard(id(member))
        return member


class Account:
    """Service of one class or of one tenant in it. `number` breaks ties: the arrival number that opened it.

    Rows that decode run up `row_cost` each in every step: the counter is linear in the step number until the rows,
    their price or the weight change, which is when the account is settled.
    """

    __slots__ = (
        "_counter",
        "_per_step",
        "_row_cost",
        "_rows",
        "_service",
        "_since",
        "key",
        "num_active",
        "num_queued",
        "number",
        "weight",
    )

    def __init__(self, key: str, number: int, weight: float, row_cost: float = 1.0) -> None:
        self.key = key
        self.number = number
        self.weight = weight
        self.num_active = 0
        self.num_queued = 0
        self._counter = 0.0
        self._service = 0.0
        self._rows = 0
        self._row_cost = row_cost
        self._per_step = 0.0
        self._since = 0

    def counter(self, step: int) -> float:
        """Service over weight once the steps up to `step` are charged."""
        return self._counter + self._per_step * (step - self._since)

    def order(self, step: int) -> tuple[float, int]:
        """Who has the least is next; ties end at the number."""
        return self._counter + self._per_step * (step - self._since), self.number

    def service(self, step: int) -> float:
        """Cost tokens of service, before weighting."""
        return self._service + self._rows * self._row_cost * (step - self._since)

    def settle(
        self,
        step: int,
        *,
        weight: float | None = None,
        row_cost: float | None = None,
    ) -> None:
        """Charge what the rows ran up so far; from here on, another weight or another price."""
        self._service = self.service(step)
        self._counter = self.counter(step)
        self._since = step
        self.weight = self.weight if weight is None else weight
        self._row_cost = self._row_cost if row_cost is None else row_cost
        self._per_step = self._rows * self._row_cost / self.weight

    def add_rows(self, change: int, step: int) -> None:
        """So many rows more (or fewer) decode from this step on: `settle` for what happens with each start and end."""
        elapsed = step - self._since
        self._service += self._rows * self._row_cost * elapsed
        self._counter += self._per_step * elapsed
        self._since = step
        self._rows += change
        self._per_step = self._rows * self._row_cost / self.weight

    def charge(self, cost: float) -> None:
        """Add to the counter and to the service."""
        self._counter += cost / self.weight
        self._service += cost

    def lift(self, least: float, step: int) -> None:
        """No banked credit: not below `least`. The account is idle, so that no rows run anything up."""
        self._counter = max(self._counter, least)
        self._since = step


class ClassAccount(Account):
    """A class's account and those of its tenants. `tier_credit` is what the starvation tier may still take."""

    __slots__ = ("last_counter", "tenants", "tier_credit")

    def __init__(self, key: str, number: int, weight: float, row_cost: float) -> None:
        super().__init__(key, number, weight, row_cost)
        self.tenants: dict[str, Account] = {}
        self.tier_credit = 0.0
        self.last_counter = 0.0


class Ledger:
    """All counters of one worker. `step` is the last booked step; weights of classes are shares that sum to 1."""

    def __init__(self, policy: Policy) -> None:
        self.step = 0
        self.classes: dict[str, ClassAccount] = {}
        self._last_counter = 0.0
        self._active: dict[str, LeastFirst[Account]] = {}
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Take over weights and prices; counters stay, and what is owed so far is settled at the old ones."""
        self._prices = policy.fairness
        self.row_cost = policy.fairness.output_token_cost
        self._equal_tenants = policy.fairness.tenants == "equal"
        for account in self.classes.values():
            account.settle(self.step, row_cost=self.row_cost)
            for tenant in account.tenants.values():
                weight = 1.0 if self._equal_tenants else None
                tenant.settle(self.step, weight=weight, row_cost=self.row_cost)
        total = sum(one.weight for one in policy.classes)
        for one in policy.classes:
            account = self.classes.get(one.id) or self._open_class(one.id)
            account.settle(self.step, weight=one.weight / total)
            account.number = one.rank

    def _open_class(self, class_id: str) -> ClassAccount:
        account = self.classes[class_id] = ClassAccount(class_id, 0, 1.0, self.row_cost)
        self._active[class_id] = LeastFirst(self.order, lambda tenant: tenant.num_active > 0)
        return account

    def order(self, account: Account) -> tuple[float, int]:
        """Least first; ties end at the arrival number (tenants) or the rank (classes)."""
        return account.order(self.step)

    def counter(self, account: Account) -> float:
        """The account's counter at the last booked step."""
        return account.counter(self.step)

    def service(self, class_id: str) -> float:
        """Cost tokens that the class was served."""
        return self.classes[class_id].service(self.step)

    def total_service(self) -> float:
        """Cost tokens that all classes were served."""
        return sum(one.service(self.step) for one in self.classes.values())

    def accounts_of(self, sequence: Sequence) -> tuple[ClassAccount, Account]:
        """The class's and the tenant's."""
        account = self.classes[sequence.class_id]
        return account, account.tenants[sequence.tenant]

    def enter(self, sequence: Sequence) -> None:
        """The sequence is active from now on (waiting, running or parked)."""
        account = self.classes[sequence.class_id]
        if account.num_active == 0:
            account.lift(self._least_class_counter(), self.step)
        account.num_active += 1
        tenant = account.tenants.get(sequence.tenant) or self._open_tenant(account, sequence)
        if not self._equal_tenants and tenant.weight != sequence.header.tenant_weight:
            tenant.settle(self.step, weight=sequence.header.tenant_weight)
        if tenant.num_active == 0:
            tenant.lift(self._least_tenant_counter(account), self.step)
        tenant.num_active += 1
        self._active[account.key].push(tenant)

    def _open_tenant(self, account: ClassAccount, sequence: Sequence) -> Account:
        if len(account.tenants) > MAX_IDLE_TENANTS:
            self._forget_idle(account)
        weight = 1.0 if self._equal_tenants else sequence.header.tenant_weight
        tenant = account.tenants[sequence.tenant] = Account(sequence.tenant, sequence.number, weight, self.row_cost)
        return tenant

    def _forget_idle(self, account: ClassAccount) -> None:
        """An idle tenant below the least counter would be lifted to it anyway."""
        least = self._least_tenant_counter(account)
        account.tenants = {
            key: tenant
            for key, tenant in account.tenants.items()
            if tenant.num_active or self.counter(tenant) > least
        }

    def _least_class_counter(self) -> float:
        counters = [self.counter(one) for one in self.classes.values() if one.num_active]
        return min(counters, default=self._last_counter)

    def _least_tenant_counter(self, account: ClassAccount) -> float:
        least = self._active[account.key].least()
        return account.last_counter if least is None else self.counter(least)

    def leave(self, sequence: Sequence) -> None:
        """The sequence ended."""
        account, tenant = self.accounts_of(sequence)
        account.num_active -= 1
        tenant.num_active -= 1
        if account.num_active == 0:
            self._last_counter = max(self._last_counter, self.counter(account))
        if tenant.num_active == 0:
            account.last_counter = max(account.last_counter, self.counter(tenant))

    def queued(self, sequence: Sequence, change: int) -> None:
        """The sequence began (+1) or ceased (-1) to wait for a slot."""
        account, tenant = self.accounts_of(sequence)
        account.num_queued += change
        tenant.num_queued += change

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Charge class and tenant."""
        for account in self.accounts_of(sequence):
            account.charge(cost)

    def join(self, sequence: Sequence, change: int) -> None:
        """The sequence began (+1) or ceased (-1) to decode in lockstep."""
        for account in self.accounts_of(sequence):
            account.add_rows(change, self.step)

    def prompt_cost(self, num_tokens: int, num_cached: int) -> float:
        """The price of a prompt, cached tokens at their own."""
        prices = self._prices
        return (num_tokens - num_cached) * prices.prompt_token_cost + num_cached * prices.cached_token_cost

    def lead(self, account: ClassAccount, extra: dict[str, float]) -> float:
        """How far the class is ahead of the least-served class that has sequences waiting."""
        waiting = [one for one in self.classes.values() if one.num_queued]
        mine = self.counter(account) + extra.get(account.key, 0.0)
        return mine - min((self.counter(one) + extra.get(one.key, 0.0) for one in waiting), default=mine)

    def accrue_tier_credit(self, cost: float, cap: float) -> None:
        """Of a step's service, each class's share may go through the starvation tier later."""
        for account in self.classes.values():
            account.tier_credit = min(account.tier_credit + cost * account.weight, cap * account.weight)
