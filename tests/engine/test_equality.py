"""The engine's greedy tokens are those of the unmodified model's own `generate()`."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import FAMILIES, make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_three_prompts_equals_generate_in_every_family(family: str) -> None:
    model = make_model(family)
    prompts = {str(length): make_prompt(length) for length in (5, 16, 31)}
    planner = HandPlanner(make_executor(model, self_check=True), chunk_size=7)
    for seq_id, prompt in prompts.items():
        planner.add(seq_id, prompt, max_new=12)

    assert planner.run() == {seq_id: reference(model, prompt, 12) for seq_id, prompt in prompts.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_would_notice_a_wrong_token(family: str) -> None:
    """Random weights must not make greedy output one repeated token, or equality proves nothing."""
    assert len(set(reference(make_model(family), make_prompt(16), 12))) >= 3


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 8, 64])
def test_the_size_of_chunks_changes_nothing(llama: PreTrainedModel, chunk_size: int) -> None:
    prompt = make_prompt(37)
    planner = HandPlanner(make_executor(llama), chunk_size)
    planner.add("a", prompt, max_new=10)

    assert planner.run()["a"] == reference(llama, prompt, 10)


def test_tokens_do_not_depend_on_who_else_is_in_the_batch(llama: PreTrainedModel) -> None:
    planner = HandPlanner(make_executor(llama), chunk_size=6)
    prompts = {f"s{index}": make_prompt(4 + 5 * index, seed=index) for index in range(7)}
    planner.add("s0", prompts["s0"], max_new=24)
    for seq_id in list(prompts)[1:]:
        planner.step()
        planner.step()
        planner.add(seq_id, prompts[seq_id], max_new=6 + len(prompts[seq_id]) % 5)

    output = planner.run()

    assert output == {s: reference(llama, prompts[s], len(output[s])) for s in prompts}


def test_a_cancelled_sequence_leaves_the_others_as_they_were(llama: PreTrainedModel) -> None:
    planner = HandPlanner(make_executor(llama), chunk_size=6)
    prompts = {seq_id: make_prompt(20, seed) for seed, seq_id in enumerate("abc")}
    for seq_id, prompt in prompts.items():
        planner.add(seq_id, prompt, max_new=12)
    for _ in range(6):
        planner.step()
    planner.cancel("b")
    prompts["d"] = make_prompt(23, 9)
    planner.add("d", prompts["d"], max_new=12)

    output = planner.run()

    assert {s: output[s] for s in "acd"} == {s: reference(llama, prompts[s], 12) for s in "acd"}


def test_a_corrupted_cache_changes_the_tokens(llama: PreTrainedModel) -> None:
    """Negative control: the tests above would notice a wrong key."""
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    prompt = make_prompt(30)
    sequence = planner.add("a", prompt, max_new=12)
    planner.step()
    executor._cache.keys[:, sequence.blocks[2]] *= -1

    assert planner.run()["a"] != reference(llama, prompt, 12)


def test_a_stop_token_ends_a_sequence(llama: PreTrainedModel) -> None:
    prompt = make_prompt(12)
    expected = reference(llama, prompt, 10)
    stop = expected[-1]
    planner = HandPlanner(make_executor(llama))
    planner.add("a", prompt, 10, SamplingParams(temperature=0.0, ignore_eos=True, stop_token_ids=(stop,)))

    assert planner.run()["a"] == expected[: expected.index(stop) + 1]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_models_own_eos_ends_a_sequence_unless_ignored(ignore_eos: bool) -> None:
    model = make_model("llama")
    prompt = make_prompt(12)
    expected = reference(model, prompt, 10)
    model.generation_config.eos_token_id = eos = expected[-1]
    planner = HandPlanner(make_executor(model))
    planner.add("a", prompt, 10, SamplingParams(temperature=0.0, ignore_eos=ignore_eos))

    end = 10 if ignore_eos else expected.index(eos) + 1
    assert planner.run()["a"] == expected[:end]
