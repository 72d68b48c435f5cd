"""Blocks: who holds them, which prefixes are known, and which are given up first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler_worker.core.block_pool import BlockPool


def a_pool(num_blocks: int = 8) -> BlockPool:
    return BlockPool(num_blocks, 16)


def held(pool: BlockPool, *hashes: int) -> tuple[int, ...]:
    """A table of fresh blocks with these hashes."""
    blocks = pool.draft().take(len(hashes))
    pool.hold(blocks)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.register(block, block_hash)
    return blocks


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_tokens_fill_whole_blocks(tokens: int, blocks: int) -> None:
    assert a_pool().blocks_for(tokens) == blocks


def test_released_blocks_with_known_content_are_cached() -> None:
    pool = a_pool()
    pool.release(held(pool, 1, 2))
    assert (pool.num_available, pool.num_cached, pool.num_used) == (8, 2, 0)


def test_a_prefix_matches_as_far_as_it_is_known() -> None:
    pool = a_pool()
    blocks = held(pool, 1, 2)
    assert pool.match((1, 2, 3), 8) == list(blocks)
    assert pool.match((9, 2), 8) == []
    assert pool.match((1, 2), 1) == [blocks[0]]


def test_empty_blocks_are_given_up_before_cached_ones() -> None:
    pool = a_pool(3)
    cached = held(pool, 1)
    pool.release(cached)
    assert cached[0] not in pool.draft().take(2)


def test_the_least_recently_used_prefix_is_given_up_first_and_its_tail_before_its_head() -> None:
    pool = a_pool(4)
    older, newer = held(pool, 1, 2), held(pool, 3, 4)
    pool.release(older)
    pool.release(newer)
    assert pool.draft().take(3) == (older[1], older[0], newer[1])


def test_an_overwritten_block_is_no_longer_known() -> None:
    pool = a_pool(1)
    pool.release(held(pool, 1))
    pool.hold(pool.draft().take(1))
    assert pool.match((1,), 1) == []


def test_a_hit_keeps_the_content() -> None:
    pool = a_pool(1)
    blocks = held(pool, 1)
    pool.release(blocks)
    pool.hold(blocks, hits=1)
    assert pool.match((1,), 1) == list(blocks)


def test_a_block_stays_held_until_its_last_holder_lets_go() -> None:
    pool = a_pool(1)
    blocks = held(pool, 1)
    pool.hold(blocks, hits=1)
    pool.release(blocks)
    assert pool.num_used == 1
    pool.release(blocks)
    assert pool.num_used == 0


def test_of_two_blocks_with_one_content_the_first_is_known() -> None:
    pool = a_pool()
    first, second = held(pool, 1), held(pool, 1)
    assert pool.match((1,), 1) == list(first)
    pool.release(second)
    assert pool.num_cached == 0


def test_forgetting_contents_empties_the_cache() -> None:
    pool = a_pool()
    pool.release(held(pool, 1, 2))
    pool.forget_contents()
    assert (pool.num_cached, pool.num_available) == (0, 8)


def test_a_draft_changes_nothing() -> None:
    pool = a_pool(2)
    draft = pool.draft()
    draft.take(2)
    assert (draft.num_available, pool.num_available) == (0, 2)


def test_a_draft_does_not_match_what_it_gave_away() -> None:
    pool = a_pool(1)
    pool.release(held(pool, 1))
    draft = pool.draft()
    draft.take(1)
    assert draft.match((1,), 1) == []


def test_a_draft_does_not_give_away_what_it_reuses() -> None:
    pool = a_pool(2)
    blocks = held(pool, 1)
    pool.release(blocks)
    draft = pool.draft()
    draft.take_hits(blocks)
    assert draft.num_available == 1
    assert draft.take(1) != blocks


def test_hits_that_somebody_holds_cost_nothing() -> None:
    pool = a_pool(2)
    blocks = held(pool, 1)
    draft = pool.draft()
    assert draft.num_idle(blocks) == 0
    draft.take_hits(blocks)
    assert draft.num_available == 1


def test_a_victims_own_blocks_can_be_taken_in_the_same_step() -> None:
    pool = a_pool(1)
    blocks = held(pool, 1)
    draft = pool.draft()
    draft.give_back(blocks)
    assert draft.take(1) == blocks


def test_a_shared_block_is_free_once_all_its_holders_gave_it_back() -> None:
    pool = a_pool(1)
    blocks = held(pool, 1)
    pool.hold(blocks, hits=1)
    draft = pool.draft()
    draft.give_back(blocks)
    assert draft.num_available == 0
    draft.give_back(blocks)
    assert draft.num_available == 1


def test_integrity_fails_when_a_table_is_missing() -> None:
    pool = a_pool()
    held(pool, 1)
    with pytest.raises(AssertionError, match="available blocks"):
        pool.check_integrity([])


def test_integrity_fails_when_a_second_holder_is_not_counted() -> None:
    pool = a_pool()
    blocks = held(pool, 1)
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([blocks, blocks])


def test_the_block_freed_last_is_taken_first() -> None:
    pool = a_pool()
    earlier, later = pool.draft().take(2)
    pool.hold((earlier, later))
    pool.release((later,))
    pool.release((earlier,))
    assert pool.draft().take(2) == (earlier, later)


def test_a_plan_may_be_booked_in_another_order_than_it_took_the_blocks() -> None:
    pool = a_pool(4)
    first, second, third = pool.draft().take(3)
    pool.hold((third,))
    pool.hold((first, second))
    pool.check_integrity([[first, second, third]])


class PoolMachine(RuleBasedStateMachine):
    """Tables come and go, prefixes are shared; nothing is lost and nothing is in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 4)
        self.tables: list[list[int]] = []

    @rule(prompt=st.integers(1, 6), base=st.sampled_from((0, 100)))
    def start(self, prompt: int, base: int) -> None:
        hashes = [base + index for index in range(prompt)]
        draft = self.pool.draft()
        hits = draft.match(hashes, prompt)
        if draft.num_available - draft.num_idle(hits) < prompt - len(hits):
            return
        draft.take_hits(hits)
        table = [*hits, *draft.take(prompt - len(hits))]
        self.pool.hold(table, len(hits))
        for block, block_hash in zip(table, hashes, strict=True):
            self.pool.register(block, block_hash)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(index=st.integers(0, 99))
    def end(self, index: int) -> None:
        self.pool.release(self.tables.pop(index % len(self.tables)))

    @rule()
    def forget(self) -> None:
        self.pool.forget_contents()

    @invariant()
    def adds_up(self) -> None:
        self.pool.check_integrity(self.tables)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
