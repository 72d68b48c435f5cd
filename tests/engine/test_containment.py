"""What fails, fails alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.executor import OutOfMemory, SequenceInput
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import VOCAB, make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
BAD_REQUESTS = {
    "token outside the vocabulary": ([5, VOCAB, 7], GREEDY),
    "negative token": ([5, -1, 7], GREEDY),
    "empty prompt": ([], GREEDY),
    "longer than the context": ([5] * 257, GREEDY),
    "temperature that is no number": ([5, 6], SamplingParams(temperature=math.nan)),
    "bias outside the vocabulary": ([5, 6], SamplingParams(logit_bias={VOCAB: 1.0})),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_fails_its_own_row(llama: PreTrainedModel, name: str) -> None:
    tokens, sampling = BAD_REQUESTS[name]
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    planner.add("good", make_prompt(15), 6)
    planner.step()
    bad = planner.add("bad", [5, 6], 6)
    executor.add(SequenceInput("bad", tokens, len(tokens), sampling))
    output = planner.run()

    assert bad.error
    assert output == {"good": reference(llama, make_prompt(15), 6), "bad": []}


def test_a_plan_that_names_an_unknown_sequence_fails_that_row(llama: PreTrainedModel) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    planner.add("good", make_prompt(15), 6)
    ghost = planner.add("ghost", make_prompt(9), 6)
    executor.remove("ghost")
    output = planner.run()

    assert "does not know" in (ghost.error or "")
    assert output["good"] == reference(llama, make_prompt(15), 6)


def poison(model: PreTrainedModel, token_id: int) -> None:
    """A token whose embedding is not a number: whoever feeds it gets NaN everywhere."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token_id] = math.nan


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_logits_that_are_not_numbers_fail_their_own_row_only(chunk_size: int) -> None:
    model = make_model("llama")
    good = {seed: make_prompt(13 + seed, seed) for seed in range(3)}
    expected = {str(seed): reference(model, prompt, 9) for seed, prompt in good.items()}
    poisoned = next(t for t in range(3, VOCAB) if all(t not in p for p in good.values()))
    assert all(poisoned not in output for output in expected.values())
    poison(model, poisoned)
    planner = HandPlanner(make_executor(model), chunk_size)
    bad = planner.add("bad", [*make_prompt(10), poisoned, 9], 9)
    for seed, prompt in good.items():
        planner.add(str(seed), prompt, 9)
    output = planner.run()

    assert "not finite" in (bad.error or "")
    assert {seq_id: output[seq_id] for seq_id in expected} == expected


def test_blocks_that_held_nan_do_no_harm_to_those_who_get_them_next() -> None:
    model = make_model("llama")
    prompts = [make_prompt(6, 1), make_prompt(23, 2)]
    expected = [reference(model, prompt, 7) for prompt in prompts]
    poison(model, 500)
    assert all(500 not in tokens for tokens in (*prompts, *expected))
    planner = HandPlanner(make_executor(model))
    planner.add("bad", [*make_prompt(30, 4)[:-1], 500], 7)
    planner.step()
    planner.free_blocks.sort()
    for index, prompt in enumerate(prompts):
        planner.add(str(index), prompt, 7)
    output = planner.run()

    assert [output["0"], output["1"]] == expected


def test_padding_of_a_short_row_never_reads_a_broken_neighbours_blocks() -> None:
    """The short row takes a slot whose old, longer block table named the blocks that its neighbour has
    now."""
    model = make_model("llama")
    prompt = make_prompt(5, 1)
    expected = reference(model, prompt, 8)
    poison(model, 500)
    assert all(500 not in tokens for tokens in (prompt, expected))
    planner = HandPlanner(make_executor(model), chunk_size=40)
    planner.add("old", make_prompt(40, 2), 1)
    planner.step()
    planner.free_slots.sort()
    planner.free_blocks.sort()
    planner.add("short", prompt, 8)
    planner.add(
        "bad", [*make_prompt(41, 4)[:-1], 500], 7
    )  # its last chunk is one token, like the short row's
    output = planner.run()

    assert planner.sequences["bad"].error
    assert output["short"] == expected


def test_blocks_of_a_broken_row_are_not_offered_as_a_prefix() -> None:
    model = make_model("llama")
    poison(model, 500)
    planner = HandPlanner(make_executor(model))
    planner.add("bad", [*make_prompt(20)[:-1], 500], 7)
    planner.step()

    assert planner.filled == []


def no_memory_at(executor: TorchExecutor, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The next forward pass finds no memory after half its layers."""
    runner: Any = executor._runner
    forward = runner.forward

    def fail(*arguments: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(runner, "forward", forward)
        forward(*arguments)
        raise error

    monkeypatch.setattr(runner, "forward", fail)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("moment", [0, 1, 5])
def test_a_step_without_memory_can_be_planned_again(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, error: Exception, moment: int
) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor, chunk_size=8)
    prompts = {seq_id: make_prompt(17, seed) for seed, seq_id in enumerate("ab")}
    for seq_id, prompt in prompts.items():
        planner.add(seq_id, prompt, 9)
    for _ in range(moment):
        planner.step()
    plan = planner.plan()
    no_memory_at(executor, monkeypatch, error)
    with pytest.raises(OutOfMemory):
        executor.launch(plan)
    executor.launch(plan)
    planner.take(executor.collect())

    assert planner.run() == {seq_id: reference(llama, prompt, 9) for seq_id, prompt in prompts.items()}


def test_what_a_failed_step_wrote_does_no_harm_to_those_who_get_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    prompt = make_prompt(9, 1)
    expected = reference(model, prompt, 8)
    poison(model, 500)
    assert all(500 not in tokens for tokens in (prompt, expected))
    executor = make_executor(model)
    planner = HandPlanner(executor)
    planner.add("bad", [*make_prompt(30, 4)[:-1], 500], 7)
    no_memory_at(executor, monkeypatch, torch.OutOfMemoryError())
    with pytest.raises(OutOfMemory):
        planner.step()
    planner.cancel("bad")
    planner.free_blocks.sort()
    planner.add("next", prompt, 8)

    assert planner.run()["next"] == expected


def test_a_step_that_is_planned_again_still_has_the_tokens_before_it_in_the_same_block(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(llama)
    before = executor._cache.keys.clone()
    planner = HandPlanner(executor, chunk_size=5)
    planner.add("a", make_prompt(17), 9)
    planner.step()
    written = executor._cache.keys.clone()
    assert not written.equal(before)
    no_memory_at(executor, monkeypatch, torch.OutOfMemoryError())
    with pytest.raises(OutOfMemory):
        executor.launch(planner.plan())

    assert executor._cache.keys.equal(written)


def test_a_step_without_memory_keeps_checkpoints_and_victims(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor, chunk_size=8)
    for seed, seq_id in enumerate(("victim", "neighbour")):
        planner.add(seq_id, make_prompt(17, seed), 12)
    for _ in range(6):
        planner.step()
    planner.swap_out("victim")
    planner.add("newcomer", make_prompt(9, 7), 4)
    for _ in range(2):  # the swap-out's step, then the swap-in's
        plan = planner.plan()
        no_memory_at(executor, monkeypatch, torch.OutOfMemoryError())
        with pytest.raises(OutOfMemory):
            executor.launch(plan)
        executor.launch(plan)
        planner.take(executor.collect())
    output = planner.run()

    assert output["victim"] == reference(llama, make_prompt(17, 0), 12)
    assert output["neighbour"] == reference(llama, make_prompt(17, 1), 12)


def test_another_error_of_the_forward_pass_is_not_disguised(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    planner.add("a", make_prompt(9), 4)
    no_memory_at(executor, monkeypatch, RuntimeError("shapes do not match"))

    with pytest.raises(RuntimeError, match="shapes do not match"):
        planner.step()


def test_a_removed_sequence_in_the_last_step_is_harmless(llama: PreTrainedModel) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    planner.add("a", make_prompt(9), 4)
    executor.launch(planner.plan())
    executor.remove("a")
    output = executor.collect()

    assert [row.seq_id for row in output.rows] == ["a"]
