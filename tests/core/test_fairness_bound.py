"""How far two backlogged classes can drift apart: VTC's bound, plus `max_lead`, plus what the starvation tier took.

For classes i and j that have requests waiting all the while, with service W in cost tokens and weight w as a share,

    W_i / w_i - W_j / w_j  <=  (P + R (O + 2) c) / w_i  +  max_lead  +  T_i / w_i

P is the dearest prompt, R the number of slots, O the longest answer, c an output token's price, T_i what i was served
through the tier. Why: the last start of i outside the tier was claimed when i was least (a turn) or at most `max_lead`
ahead of the least (a rescue). What i is served from then on is that prompt, the rest of at most R answers (rows that
end within the two steps between claim and start leave their places to others), and T_i. Counters only grow, so the
least has not become less meanwhile.

The tier itself takes at most T_i <= w_i S + w_i max_lead + V, S being all service since then and V the dearest request.

Between tenants i and j of one class that have unclaimed requests all the while,

    C_i - C_j  <=  (min(R P, 2 B s p + P) + R (O + 2) c) / w_i  +  A_i / w_i

B is the token budget, p a prompt token's price, s = max(1, longest prompt / (2 x chunk limit)), A_i what i was served
by rescues and through the tier, where deadlines choose among tenants and not counters. Why: when i was last claimed in
its turn, its counter was at most j's, both with what the same pass had claimed for them. What i is charged from then
on, and j perhaps not yet, are prompts claimed and not started, which count against the class alone: at most one for
each slot that comes free; and a pass claims nothing more once claimed prompts fill the budget of two steps, of which a
prompt takes at most two chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_worker.core.fairness import Account
from scheduler_worker.core.plan import EventKind, Reason
from scheduler_worker.core.policy import Policy, default_policy
from tests.core.worlds import World, a_capacity, with_rules

NUM_SLOTS = 4
MAX_PROMPT = 64
MAX_CHUNK = 24
NUM_WAITING = NUM_SLOTS + 1
MAX_OUTPUT = 12
OUTPUT_COST = 2.0
CLASSES = ("high", "medium", "low")
TENANTS = ("a", "b", "c")
ROW_TOKENS = NUM_SLOTS * (MAX_OUTPUT + 2)
DEAREST = MAX_PROMPT + MAX_OUTPUT * OUTPUT_COST
SIZES = st.tuples(st.integers(1, MAX_PROMPT), st.integers(1, MAX_OUTPUT))


def rules(max_lead: float, rescues: bool, tier: bool, preempts: bool, budget: int = 2_048) -> Policy:
    """Bounds so short that, with `tier`, somebody is always starving."""
    classes = tuple(
        one.model_copy(
            update={
                "max_wait_s": 1.0,
                "preemption": one.preemption.model_copy(update={"preemptible": preempts and one.rank > 0}),
            }
        )
        for one in default_policy().classes
    )
    return with_rules(
        default_policy().model_copy(update={"classes": classes}),
        fairness={"max_lead_tokens": max_lead},
        starvation={"enabled": tier, "guard": 0.9},
        step={
            "rescue_within_s": 0.05 if rescues else 0.0,
            "max_num_batched_tokens": budget,
            "max_chunk_tokens": min(budget, MAX_CHUNK),
        },
    )


@dataclass
class Backlog:
    """A world in which every class, or every tenant of one class, always has more unclaimed requests than slots."""

    world: World
    groups: tuple[tuple[str, str], ...]
    sizes: Callable[[int], tuple[int, int]]
    owner: dict[str, str] = field(default_factory=dict)
    by_tier: dict[str, float] = field(default_factory=dict)
    by_rescue: dict[str, float] = field(default_factory=dict)

    def refill(self) -> None:
        for class_id, tenant in self.groups:
            name = tenant if len({one for one, _ in self.groups}) == 1 else class_id
            unclaimed = self.world.scheduler.state.waiting.sequences
            present = sum(1 for seq_id in unclaimed if self.owner[seq_id] == name)
            for _ in range(NUM_WAITING - present):
                prompt, output = self.sizes(len(self.owner))
                seq_id = f"r{len(self.owner)}"
                self.owner[seq_id] = name
                self.world.add(seq_id, class_id, prompt=prompt, max_tokens=output, tenant=tenant)

    def step(self) -> None:
        self.refill()
        num_events = len(self.world.events)
        self.world.step()
        for event in self.world.events[num_events:]:
            if event.kind in (EventKind.SCHEDULED, EventKind.RESUMED) and "tier_cost" in event.numbers:
                self._add(self.by_tier, event.seq_id, float(event.numbers["tier_cost"]))
            elif event.kind is EventKind.SCHEDULED and event.reason is Reason.RESCUE:
                self._add(self.by_rescue, event.seq_id, DEAREST)

    def _add(self, sums: dict[str, float], seq_id: str, cost: float) -> None:
        name = self.owner[seq_id]
        sums[name] = sums.get(name, 0.0) + cost

    def counters(self, accounts: dict[str, Account]) -> dict[str, float]:
        step = self.world.scheduler.state.step
        return {name: account.counter(step) for name, account in accounts.items()}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(SIZES, min_size=3, max_size=20),
    max_lead=st.sampled_from([0.0, 50.0, 1_000.0]),
    rescues=st.booleans(),
    tier=st.booleans(),
    preempts=st.booleans(),
)
def test_backlogged_classes_stay_within_the_bound(
    sizes: list[tuple[int, int]], max_lead: float, rescues: bool, tier: bool, preempts: bool
) -> None:
    policy = rules(max_lead, rescues, tier, preempts)
    world = World(policy=policy, capacity=a_capacity(num_slots=NUM_SLOTS), checks=False)
    backlog = Backlog(world, tuple((one, "t") for one in CLASSES), lambda number: sizes[number % len(sizes)])
    for _ in range(100):
        backlog.step()
        accounts = world.scheduler.state.ledger.classes
        counters = backlog.counters(dict(accounts))
        least, served = min(counters.values()), world.scheduler.state.ledger.total_service()
        for name, account in accounts.items():
            taken = backlog.by_tier.get(name, 0.0)
            vtc = (MAX_PROMPT + ROW_TOKENS * OUTPUT_COST) / account.weight
            assert counters[name] - least <= vtc + max_lead + taken / account.weight
            assert taken <= account.weight * (served + max_lead) + DEAREST


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(SIZES, min_size=3, max_size=20),
    rescues=st.booleans(),
    tier=st.booleans(),
    budget=st.sampled_from([16, 24, 48, 2_048]),
)
def test_backlogged_tenants_stay_within_the_bound(
    sizes: list[tuple[int, int]], rescues: bool, tier: bool, budget: int
) -> None:
    policy = rules(1_000.0, rescues, tier, False, budget)
    world = World(policy=policy, capacity=a_capacity(num_slots=NUM_SLOTS), checks=False)
    backlog = Backlog(world, tuple(("low", one) for one in TENANTS), lambda number: sizes[number % len(sizes)])
    for _ in range(100):
        backlog.step()
        counters = backlog.counters(world.scheduler.state.ledger.classes["low"].tenants)
        for name, counter in counters.items():
            ahead_of_turn = backlog.by_tier.get(name, 0.0) + backlog.by_rescue.get(name, 0.0)
            vtc = claimed_prompts(budget) + ROW_TOKENS * OUTPUT_COST
            assert counter - min(counters.values()) <= vtc + ahead_of_turn


def claimed_prompts(budget: int) -> float:
    """The most that prompts claimed and not started cost, a prompt token being 1."""
    chunks_over_budget = max(1.0, MAX_PROMPT / (2 * min(budget, MAX_CHUNK)))
    return min(NUM_SLOTS * MAX_PROMPT, 2 * budget * chunks_over_budget + MAX_PROMPT)
