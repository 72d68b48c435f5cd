"""A step may be launched before the tokens of the one before it are known."""

from __future__ import annotations

from array import array

import pytest
from transformers import PreTrainedModel

from scheduler_worker.core.plan import Chunk, StepPlan
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.executor import SequenceInput, StepOutput
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_executor, make_prompt, reference
from tests.engine.planner import HandPlanner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
PENALISED = SamplingParams(temperature=0.8, seed=3, repetition_penalty=1.4, ignore_eos=True)
NUM_TOKENS = 12


def launch(executor: TorchExecutor, step: int, prompts: dict[str, list[int]]) -> None:
    """Step 0 prefills every row, step N decodes position `len(prompt) + N - 1`; 16 blocks for each slot."""
    size = executor.capacity.block_size
    chunks = []
    for slot, (seq_id, prompt) in enumerate(prompts.items()):
        start, num_tokens = (0, len(prompt)) if step == 0 else (len(prompt) + step - 1, 1)
        had = 0 if step == 0 else -(-start // size)
        blocks = tuple(slot * 16 + index for index in range(had, -(-(start + num_tokens) // size)))
        chunks.append(Chunk(seq_id, slot, start, num_tokens, True, step == 0, blocks))
    executor.launch(StepPlan(step, 1, 0.0, tuple(chunks)))


def run_two_deep(executor: TorchExecutor, prompts: dict[str, list[int]]) -> list[StepOutput]:
    outputs = []
    for step in range(NUM_TOKENS):
        launch(executor, step, prompts)
        if step > 0:
            outputs.append(executor.collect())
    return [*outputs, executor.collect()]


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED], ids=["greedy", "penalised"])
def test_two_steps_in_flight_yield_the_tokens_of_one(
    llama: PreTrainedModel, sampling: SamplingParams
) -> None:
    prompts = {seq_id: make_prompt(9 + seed, seed) for seed, seq_id in enumerate("abc")}
    one_deep = HandPlanner(make_executor(llama))
    two_deep = make_executor(llama, max_in_flight_steps=2)
    for seq_id, prompt in prompts.items():
        one_deep.add(seq_id, prompt, NUM_TOKENS, sampling)
        two_deep.add(SequenceInput(seq_id, array("I", prompt), len(prompt), sampling))
    outputs = run_two_deep(two_deep, prompts)

    tokens = {seq_id: [step.rows[i].token_ids[0] for step in outputs] for i, seq_id in enumerate(prompts)}
    assert tokens == one_deep.run()


def test_two_steps_in_flight_report_the_same_blocks(llama: PreTrainedModel) -> None:
    prompts = {"a": make_prompt(9)}
    one_deep = HandPlanner(make_executor(llama))
    one_deep.add("a", prompts["a"], NUM_TOKENS)
    one_deep.run()
    two_deep = make_executor(llama, max_in_flight_steps=2)
    two_deep.add(SequenceInput("a", prompts["a"], 9, GREEDY))

    filled = [block for step in run_two_deep(two_deep, prompts) for block in step.filled_blocks]
    assert filled == one_deep.filled


def test_a_row_planned_beyond_what_is_in_flight_fails_alone(llama: PreTrainedModel) -> None:
    executor = make_executor(llama, max_in_flight_steps=2)
    executor.add(SequenceInput("a", make_prompt(9), 9, GREEDY))
    launch(executor, 0, {"a": make_prompt(9)})
    executor.launch(StepPlan(1, 1, 0.0, (Chunk("a", 0, 10, 1, True),)))
    first, second = executor.collect(), executor.collect()

    assert first.rows[0].token_ids == tuple(reference(llama, make_prompt(9), 1))
    assert "the plan asks for 11 tokens" in (second.rows[0].error or "")
