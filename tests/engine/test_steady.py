"""Rows that decode on: a batch and a plan moved on in place are what new ones would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import AttentionBatch
from scheduler_worker.engine.attention.sdpa import SdpaBackend
from scheduler_worker.engine.batch import PackedBatch, Packer
from scheduler_worker.engine.rows import StepRows
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
        new = pack(Packer(self._block_tables, self._block_size, on_host=False), rows)
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
    if family == "llama":
        assert num_planned < num_steps / 2
