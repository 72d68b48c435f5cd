"""Who yields to whom, and what it costs.

Preemption *by priority* serves a promise: an urgent sequence takes the place of a lower-ranked one that may yield
and whose return is cheapest. Preemption *by memory* repairs a shortage: no block is left for a decoding sequence,
and the least urgent sequence whose return is cheapest makes room. Either way the victim comes back, by copying its
blocks from the host or by computing them again, whichever is less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduler_worker.core.plan import Capacity, Reason
from scheduler_worker.core.policy import Preemption
from scheduler_worker.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Victim:
    """A sequence that could yield: what its return would cost, and whether by copying."""

    sequence: Sequence
    return_s: float
    swaps: bool
    num_blocks: int


def return_cost(
    num_blocks: int, recompute_s: float, capacity: Capacity, may_swap: bool, num_swap_blocks_left: int
) -> tuple[float, bool]:
    """Seconds until a victim is where it was, and whether copying (out and in) is the cheaper way."""
    copy_s = 2 * num_blocks * capacity.swap_block_s
    swaps = may_swap and 0 < num_blocks <= num_swap_blocks_left and copy_s < recompute_s
    return (copy_s, True) if swaps else (recompute_s, False)


def why_not(
    sequence: Sequence, num_generated: int, by_rank: int, rules: Preemption, now: float
) -> Reason | None:
    """Why the sequence does not yield to one of rank `by_rank`; None when it may."""
    if sequence.rank <= by_rank:
        return Reason.AS_URGENT
    if not rules.preemptible:
        return Reason.CLASS_MAY_NOT_YIELD
    if num_generated >= rules.max_generated_tokens:
        return Reason.PAST_MAX_GENERATED
    if sequence.num_preemptions >= rules.max_preemptions:
        return Reason.PAST_MAX_PREEMPTIONS
    if now - sequence.resident_since < rules.min_residency_s:
        return Reason.WITHIN_MIN_RESIDENCY
    return None


def in_order_of_return(rows: Iterable[Sequence], num_computed: Callable[[Sequence], int]) -> list[Sequence]:
    """By priority: the cheapest return first; among equals the least urgent, then the latest arrival.

    Copying and computing again both cost more the more tokens there are, so that tokens decide without pricing.
    """
    return sorted(rows, key=lambda one: (num_computed(one), -one.rank, -one.number))


def last_in_line(victims: Iterable[Victim]) -> Victim | None:
    """By memory: the least urgent class first, in it the cheapest return, then the latest arrival.

    Not the cheapest *per block*: a shortage lasts until the next sequence ends, and seldom needs all that a long one
    would give.
    """
    return min(
        victims, key=lambda one: (-one.sequence.rank, one.return_s, -one.sequence.number), default=None
    )
