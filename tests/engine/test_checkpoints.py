"""A preempted sequence goes on as if nothing had happened, however its KV came back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from scheduler_worker.core.plan import Chunk, StepPlan, SwapIn
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.executor import SequenceInput
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_executor, make_model, make_prompt, reference
from tests.engine.planner import HandPlanner

MAX_NEW = 14
NUM_PROMPT_TOKENS = 29
MOMENTS = {"mid-prefill": 2, "first-token": 4, "mid-decode": 9}
MODES = ("swap", "disk", "recompute")


def executor_for(mode: str, model: PreTrainedModel, folder: Path) -> TorchExecutor:
    return make_executor(model, checkpoint_dir=str(folder) if mode == "disk" else None)


def preempt(planner: HandPlanner, seq_id: str, mode: str) -> None:
    """The victim's blocks are given to a newcomer before it comes back elsewhere."""
    if mode == "recompute":
        planner.evict(seq_id)
    else:
        planner.swap_out(seq_id)
    planner.add("newcomer", make_prompt(35, 8), max_new=3)
    planner.free_blocks.sort()
    planner.step()
    planner.step()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_greedy_output_after_preemption_equals_the_uninterrupted_one(
    llama: PreTrainedModel, tmp_path: Path, mode: str, moment: str
) -> None:
    planner = HandPlanner(executor_for(mode, llama, tmp_path), chunk_size=8)
    prompt = make_prompt(NUM_PROMPT_TOKENS)
    planner.add("victim", prompt, MAX_NEW)
    planner.add("neighbour", make_prompt(21, 3), MAX_NEW)
    for _ in range(MOMENTS[moment]):
        planner.step()
    preempt(planner, "victim", mode)
    output = planner.run()

    assert output["victim"] == reference(llama, prompt, MAX_NEW)
    assert output["neighbour"] == reference(llama, make_prompt(21, 3), MAX_NEW)


def test_a_sampled_sequence_with_penalties_goes_on_unchanged(llama: PreTrainedModel) -> None:
    sampling = SamplingParams(
        temperature=1.2, seed=5, repetition_penalty=1.3, frequency_penalty=0.5, ignore_eos=True
    )
    outputs = []
    for interrupted in (False, True):
        planner = HandPlanner(make_executor(llama), chunk_size=8)
        planner.add("victim", make_prompt(NUM_PROMPT_TOKENS), MAX_NEW, sampling)
        for _ in range(9):
            planner.step()
        if interrupted:
            preempt(planner, "victim", "swap")
        outputs.append(planner.run()["victim"])

    assert outputs[0] == outputs[1]


def test_a_corrupted_checkpoint_in_memory_changes_the_tokens(llama: PreTrainedModel) -> None:
    """Negative control: the tokens really come from the checkpoint."""
    executor = make_executor(llama)
    planner = HandPlanner(executor, chunk_size=8)
    prompt = make_prompt(NUM_PROMPT_TOKENS)
    planner.add("victim", prompt, MAX_NEW)
    for _ in range(9):
        planner.step()
    planner.swap_out("victim")
    planner.add("newcomer", make_prompt(35, 8), max_new=3)
    planner.step()
    store: Any = executor._checkpoints
    with torch.inference_mode():
        store._kept["victim"].keys.mul_(-1)

    assert planner.run()["victim"] != reference(llama, prompt, MAX_NEW)


def corrupt(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("keys", "values")}
        metadata = file.metadata()
    tensors["keys"][0, 0] += 1
    save_file(tensors, path, metadata=metadata)


def test_a_damaged_checkpoint_on_disk_fails_its_own_sequence_only(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    executor = executor_for("disk", llama, tmp_path)
    planner = HandPlanner(executor, chunk_size=8)
    planner.add("victim", make_prompt(NUM_PROMPT_TOKENS), MAX_NEW)
    planner.add("neighbour", make_prompt(21, 3), MAX_NEW)
    for _ in range(9):
        planner.step()
    planner.swap_out("victim")
    planner.step()
    store: Any = executor._checkpoints
    store._finish_write("victim")
    corrupt(next(tmp_path.glob("*.safetensors")))
    output = planner.run()

    assert "does not match its digest" in (planner.sequences["victim"].error or "")
    assert output["neighbour"] == reference(llama, make_prompt(21, 3), MAX_NEW)


def resume_elsewhere(executor: TorchExecutor, tokens: list[int], num_prompt_tokens: int) -> list[Any]:
    """A fresh executor swaps the sequence in from disk and decodes on, planned by hand."""
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    executor.add(SequenceInput("victim", tokens, num_prompt_tokens, sampling))
    size = executor.capacity.block_size
    num_computed = len(tokens) - 1
    blocks = tuple(range(50, 50 + -(-num_computed // size)))
    chunk = Chunk("victim", 3, num_computed, 1, True, new_blocks=(80,) if num_computed % size == 0 else ())
    swap_in = SwapIn("victim", 3, blocks)
    executor.launch(StepPlan(0, 1, 0.0, (chunk,), swap_ins=(swap_in,)))
    return list(executor.collect().rows)


def checkpoint_then_stop(model: PreTrainedModel, folder: Path, prompt: list[int]) -> list[int]:
    """Compute, checkpoint and close; returns all tokens of the sequence."""
    executor = executor_for("disk", model, folder)
    planner = HandPlanner(executor, chunk_size=8)
    victim = planner.add("victim", prompt, MAX_NEW)
    for _ in range(9):
        planner.step()
    planner.swap_out("victim")
    planner.step()
    executor.close()
    return prompt + victim.output


def test_a_checkpoint_on_disk_outlives_the_process(llama: PreTrainedModel, tmp_path: Path) -> None:
    prompt = make_prompt(NUM_PROMPT_TOKENS)
    tokens = checkpoint_then_stop(llama, tmp_path, prompt)
    (row,) = resume_elsewhere(executor_for("disk", llama, tmp_path), tokens, len(prompt))

    num_generated = len(tokens) - len(prompt)
    assert row.token_ids[0] == reference(llama, prompt, MAX_NEW)[num_generated]


def test_a_checkpoint_of_another_model_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    prompt = make_prompt(NUM_PROMPT_TOKENS)
    tokens = checkpoint_then_stop(llama, tmp_path, prompt)
    (row,) = resume_elsewhere(executor_for("disk", make_model(seed=1), tmp_path), tokens, len(prompt))

    assert "another model" in row.error


def test_a_checkpoint_of_other_tokens_is_refused(llama: PreTrainedModel, tmp_path: Path) -> None:
    prompt = make_prompt(NUM_PROMPT_TOKENS)
    tokens = checkpoint_then_stop(llama, tmp_path, prompt)
    tokens[3] += 1
    (row,) = resume_elsewhere(executor_for("disk", llama, tmp_path), tokens, len(prompt))

    assert "holds other tokens" in row.error


def test_a_checkpoint_that_is_not_there_fails_its_row(llama: PreTrainedModel) -> None:
    (row,) = resume_elsewhere(make_executor(llama), make_prompt(20), 18)

    assert "no checkpoint" in row.error


def test_a_removed_sequence_leaves_no_checkpoint(llama: PreTrainedModel, tmp_path: Path) -> None:
    executor = executor_for("disk", llama, tmp_path)
    planner = HandPlanner(executor)
    planner.add("victim", make_prompt(20), MAX_NEW)
    planner.step()
    planner.swap_out("victim")
    planner.step()
    executor.remove("victim")
    executor.close()

    assert list(tmp_path.iterdir()) == []


def test_swapped_blocks_are_bitwise_the_same(llama: PreTrainedModel) -> None:
    executor = make_executor(llama)
    planner = HandPlanner(executor)
    victim = planner.add("victim", make_prompt(20), MAX_NEW)
    planner.step()
    before = executor._cache.keys[:, victim.blocks].clone()
    planner.swap_out("victim")
    planner.add("newcomer", make_prompt(35, 8), max_new=3)
    planner.step()
    plan = planner.plan()
    executor.launch(plan)
    after = executor._cache.keys[:, list(plan.swap_ins[0].blocks)]

    assert torch.equal(after[:, :5], before[:, :5])
