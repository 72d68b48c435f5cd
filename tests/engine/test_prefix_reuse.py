"""Blocks that a finished sequence filled serve others, and are reported under the protocol's hashes."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from scheduler_worker.protocol.hashing import block_hashes
from tests.engine.models import make_executor, make_prompt, reference
from tests.engine.planner import HandPlanner


def test_a_shared_prefix_is_read_and_not_computed_again(llama: PreTrainedModel) -> None:
    planner = HandPlanner(make_executor(llama), chunk_size=9)
    shared = make_prompt(24)
    first = planner.add("first", shared + make_prompt(3, 1), max_new=4)
    while not first.done:
        blocks = list(first.blocks) or None
        planner.step()
    assert blocks is not None
    cached = blocks[: len(shared) // planner.block_size]
    planner.free_blocks = [block for block in planner.free_blocks if block not in cached]
    prompt = shared + make_prompt(11, 2)
    planner.add("second", prompt, max_new=10, cached_blocks=cached)

    assert planner.run()["second"] == reference(llama, prompt, 10)


def test_a_wrong_cached_block_changes_the_tokens(llama: PreTrainedModel) -> None:
    """Negative control: the cached blocks really are what the second sequence reads."""
    planner = HandPlanner(make_executor(llama))
    cached = [planner.free_blocks.pop() for _ in range(6)]
    prompt = make_prompt(24) + make_prompt(11, 2)
    planner.add("a", prompt, max_new=10, cached_blocks=cached)

    assert planner.run()["a"] != reference(llama, prompt, 10)


@pytest.mark.parametrize("chunk_size", [1, 5, 64])
def test_every_block_is_reported_once_when_full_with_the_hash_of_all_tokens_before(
    llama: PreTrainedModel, chunk_size: int
) -> None:
    planner = HandPlanner(make_executor(llama), chunk_size)
    prompt = make_prompt(18)
    sequence = planner.add("a", prompt, max_new=9)
    planner.run()

    computed = (prompt + sequence.output)[:-1]  # the last token was never fed back
    expected = block_hashes(computed, planner.block_size)
    assert [(f.index, f.block_hash) for f in planner.filled] == list(enumerate(expected))


def test_blocks_after_a_cached_prefix_chain_on_its_hash(llama: PreTrainedModel) -> None:
    planner = HandPlanner(make_executor(llama))
    prompt = make_prompt(20)
    planner.add("a", prompt, max_new=1, cached_blocks=[planner.free_blocks.pop() for _ in range(3)])
    planner.run()

    expected = block_hashes(prompt, planner.block_size)
    assert [(f.index, f.block_hash) for f in planner.filled] == [(3, expected[3]), (4, expected[4])]
