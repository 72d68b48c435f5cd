"""Rows by columns: the same as one by one, also where a plan asks for what cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import Chunk, StepPlan
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.rows import Stager
from scheduler_worker.executor import OutOfMemory
from tests.engine.models import make_executor, make_prompt, reference
from tests.engine.planner import HandPlanner

NUM_NEW = 40  # several blocks


def decoding(llama: PreTrainedModel) -> HandPlanner:
    """Four sequences of different lengths that have decoded by columns for a while."""
    planner = HandPlanner(make_executor(llama), by_columns=True)
    for number in range(4):
        planner.add(str(number), make_prompt(5 + 6 * number, number), NUM_NEW)
        for _ in range(3):
            planner.step()
    return planner


def expected(llama: PreTrainedModel, number: int) -> list[int]:
    return reference(llama, make_prompt(5 + 6 * number, number), NUM_NEW)


@pytest.mark.parametrize("chunk_size", [1, 3, 1 << 30])
def test_rows_that_come_and_go_yield_what_they_would_alone(llama: PreTrainedModel, chunk_size: int) -> None:
    planner = HandPlanner(make_executor(llama), chunk_size, by_columns=True)
    for number in range(4):
        planner.add(str(number), make_prompt(5 + 6 * number, number), NUM_NEW)
        for _ in range(3):
            planner.step()
        if number == 2:
            planner.swap_out("0")
            planner.evict("1")
    output = planner.run()

    assert output == {str(number): expected(llama, number) for number in range(4)}


def changed(planner: HandPlanner, change: Callable[[Chunk], Chunk | None]) -> StepPlan:
    """The next plan, with the chunk of sequence 2 as `change` has it, once it says anything."""
    while True:
        plan = planner.plan()
        chunks = list(plan.chunks)
        place = next(place for place, one in enumerate(chunks) if one.seq_id == "2")
        wrong = change(chunks[place])
        if wrong is not None:
            chunks[place] = wrong
            plain = plan._replace(chunks=tuple(chunks))
            return plain._replace(chunks=StepChunks.of(plain))
        planner.executor.launch(plan)
        planner.take(planner.executor.collect())


WRONG: dict[str, tuple[Callable[[Chunk], Chunk | None], str]] = {
    "another slot": (lambda one: one._replace(slot=one.slot + 3), "is planned in slot"),
    "a token that is not there": (lambda one: one._replace(start=one.start + 1), "the plan asks for"),
    "no block for it": (lambda one: one._replace(new_blocks=()) if one.new_blocks else None, "do not hold the"),
    "unknown": (lambda one: one._replace(seq_id="ghost"), "does not know"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_row_among_columns_fails_alone(llama: PreTrainedModel, name: str) -> None:
    planner, (change, reason) = decoding(llama), WRONG[name]
    planner.executor.launch(changed(planner, change))
    output = planner.executor.collect()
    errors = {one.seq_id: one.error for one in output.rows if one.error}

    assert list(errors) == ["ghost" if name == "unknown" else "2"]
    assert all(reason in (error or "") for error in errors.values())
    assert not output.is_plain
    planner.sequences["ghost"] = planner.sequences["2"]
    planner.take(output)
    rest = planner.run()
    assert {one: rest[one] for one in "013"} == {str(number): expected(llama, number) for number in (0, 1, 3)}


def test_a_sequence_that_is_gone_fails_its_row_among_columns(llama: PreTrainedModel) -> None:
    planner = decoding(llama)
    planner.executor.remove("1")
    output = planner.run()

    assert "does not know" in (planner.sequences["1"].error or "")
    assert {one: output[one] for one in "023"} == {str(number): expected(llama, number) for number in (0, 2, 3)}


def test_no_memory_while_rows_are_placed_leaves_the_others_as_they_were(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = decoding(llama)
    executor = planner.executor
    assert isinstance(executor, TorchExecutor)
    pending = {one: sequence.num_pending for one, sequence in executor._sequences.items()}
    planner.add("new", make_prompt(9, 9), NUM_NEW)
    place, plan = Stager._place, planner.plan()

    def no_memory(*_: object) -> None:
        raise MemoryError("counts of tokens")

    monkeypatch.setattr(Stager, "_place", no_memory)
    with pytest.raises(OutOfMemory):
        executor.launch(plan)
    assert {one: executor._sequences[one].num_pending for one in pending} == pending

    monkeypatch.setattr(Stager, "_place", place)
    executor.launch(plan)
    planner.take(executor.collect())
    rest = planner.run()
    assert rest["new"] == reference(llama, make_prompt(9, 9), NUM_NEW)
    assert {one: rest[one] for one in "0123"} == {str(number): expected(llama, number) for number in range(4)}
