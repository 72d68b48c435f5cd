"""Rows that decode on: a batch and a plan moved on in place are what new ones would be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from scheduler_worker.core.plan import Chunk
from scheduler_worker.engine.attention.base import AttentionBatch
from scheduler_worker.engine.attention.sdpa import SdpaBackend
from scheduler_worker.engine.batch import PackedBatch, Packer
from scheduler_worker.engine.rows import StepRows
from scheduler_worker.engine.sequences import new_sequence
from scheduler_worker.executor import SequenceInput
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_executor, make_model, make_prompt
from tests.engine.test_scheduled import Served


def run(model: PreTrainedModel) -> None:
    """Rows in different places of their blocks; one joins and one leaves while others decode on."""
    served = Served(make_executor(model))
    for number, length in enumerate((5, 11, 40)):
        served.add(str(number), make_prompt(length, number), 60 if number else 40)
        for _ in range(15):
            served.turn()
    while served.turn():
        pass


def test_a_batch_moved_on_in_place_is_what_a_new_one_is(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, begins = Packer.pack, list[bool]()

    def compared(self: Packer, rows: StepRows) -> PackedBatch:
        found = pack(self, rows)
        new = pack(Packer(self._block_tables, self._block_size), rows)
        for name in ("input_ids", "positions", "last_tokens", "fed_positions", "fed_slots"):
            assert np.array_equal(getattr(found, name), getattr(new, name)), name
        for name in ("slots", "starts", "lengths", "offsets", "write_index"):
            assert np.array_equal(getattr(found.attention, name), getattr(new.attention, name)), name
        for name in ("slots", "indices", "samples"):
            assert np.array_equal(getattr(found.sampling, name), getattr(new.sampling, name)), name
        if found.attention.is_next:
            begins.append(bool(found.attention.begun))
        return found

    monkeypatch.setattr(Packer, "pack", compared)
    run(llama)
    assert begins.count(False) > begins.count(True) > 5


@pytest.mark.parametrize("family", ["llama", "qwen2-window", "mistral-window", "gemma2"])
@pytest.mark.parametrize("group_tokens", [1, 1 << 20])
def test_a_plan_moved_on_in_place_shows_every_row_its_context(
    family: str, group_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, plan_window = SdpaBackend.plan, SdpaBackend._window_plan
    num_steps = num_planned = 0

    def counted(self: SdpaBackend, *args: Any) -> Any:
        nonlocal num_planned
        num_planned += 1
        return plan_window(self, *args)

    def checked(self: SdpaBackend, batch: AttentionBatch) -> None:
        nonlocal num_steps
        self._group_tokens = group_tokens
        plan(self, batch)
        num_steps += 1
        for window, planned in self._plans.items():
            assert sum(group.last - group.first for group in planned.groups) == batch.num_decode_rows
            for group in planned.groups:
                shown = (group.mask[:, 0, 0] == 0).numpy()
                blocks = group.blocks.view(shown.shape[0], -1).numpy().repeat(self._block_size, axis=1)
                for row in range(group.last - group.first):
                    slot, length = batch.slots[group.first + row], int(batch.lengths[group.first + row])
                    seen_from = 0 if window is None else max(0, length - window)
                    positions = np.arange(seen_from, length)
                    assert np.array_equal(
                        blocks[row][shown[row]], batch.block_tables[slot, positions // self._block_size]
                    )

    monkeypatch.setattr(SdpaBackend, "_window_plan", counted)
    monkeypatch.setattr(SdpaBackend, "plan", checked)
    run(make_model(family))
    if family == "llama":  # one plan for each step with a prompt, two for what follows it, one where room ended
        assert num_planned < num_steps / 6


def decoding_rows(name: str) -> StepRows:
    """Two rows of one token in slots 0 and 1, at position 20."""
    chunks = [Chunk(f"{name}-{slot}", slot, 20, 1, samples=True) for slot in range(2)]
    inputs = [SequenceInput(chunk.seq_id, [5] * 40, 20, SamplingParams()) for chunk in chunks]
    sequences = [new_sequence(one, 0, frozenset(), None) for one in inputs]
    return StepRows.of(list(zip(range(2), sequences, chunks, strict=True)))


def test_rows_that_are_others_in_the_same_places_are_not_taken_for_those_before() -> None:
    """Rows leave, and in the same step others of the same length take their slots."""
    packer = Packer(np.zeros((4, 4), dtype=np.int32), 16, in_place=True)
    rows, others = decoding_rows("a"), decoding_rows("b")
    packer.pack(rows)
    steady = packer.pack(replace(rows, starts=rows.starts + 1))
    assert packer.pack(replace(rows, starts=rows.starts + 2)) is steady

    assert packer.pack(replace(others, starts=others.starts + 3)) is not steady


def test_a_step_that_is_run_again_is_not_taken_for_the_next_one() -> None:
    packer = Packer(np.zeros((4, 4), dtype=np.int32), 16, in_place=True)
    rows = decoding_rows("a")
    for step in (0, 1, 2, 2):
        batch = packer.pack(replace(rows, starts=rows.starts + step))
    assert not batch.attention.is_next
    assert batch.positions.tolist() == [22, 22]
