"""The engine under the real scheduler, whose plans have the decoding rows by columns."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from transformers import PreTrainedModel

from scheduler_worker.core.plan import StepPlan
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.rows import _Decoding
from scheduler_worker.executor import SequenceInput, to_result
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_executor, make_prompt, reference

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)
CLASSES = [one.id for one in default_policy().classes]


class Served:
    """A scheduler and an executor, turned by hand at a clock that ticks once a step."""

    def __init__(self, executor: TorchExecutor) -> None:
        self._executor = executor
        self._scheduler = Scheduler(default_policy(), executor.capacity)
        self._in_flight: deque[StepPlan] = deque()
        self._now = 0.0
        self.output: dict[str, list[int]] = {}

    def add(self, seq_id: str, prompt: list[int], max_tokens: int) -> None:
        number = len(self.output)
        self.output[seq_id] = []
        class_id = CLASSES[number % len(CLASSES)]
        self._executor.add(SequenceInput(seq_id, prompt, len(prompt), GREEDY))
        self._scheduler.add(
            SequenceHeader(seq_id, class_id, "tenant", number + 1, self._now, len(prompt), max_tokens),
            self._now,
        )
        self._scheduler.claim([seq_id], self._now)

    def turn(self) -> bool:
        """Launch if there is a plan, collect if there is no room or no plan; False when all is done."""
        self._now += 0.01
        plan = self._scheduler.plan_step(self._now)
        if plan is not None:
            self._scheduler.begin(plan)
            self._executor.launch(plan)
            self._in_flight.append(plan)
        if len(self._in_flight) >= self._executor.capacity.max_in_flight_steps or plan is None:
            if not self._in_flight:
                return False
            self._collect()
        return True

    def _collect(self) -> None:
        plan, output = self._in_flight.popleft(), self._executor.collect()
        applied = self._scheduler.apply_result(to_result(plan, output), self._now)
        tokens = {one.seq_id: one.token_ids for one in output.rows}
        for seq_id, num_new in applied.tokens.rows if applied.tokens else ():
            self.output[seq_id] += tokens[seq_id][:num_new]
        for seq_id in applied.released:
            self._executor.remove(seq_id)


@pytest.mark.parametrize("depth", [1, 2])
def test_rows_that_decode_on_and_on_equal_generate(
    llama: PreTrainedModel, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_looks = num_steps = 0
    look, launch = _Decoding.of, TorchExecutor.launch

    def counted_look(*args: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        return look(*args)

    def counted_launch(self: TorchExecutor, plan: StepPlan) -> None:
        nonlocal num_steps
        num_steps += 1
        launch(self, plan)

    monkeypatch.setattr(_Decoding, "of", counted_look)
    monkeypatch.setattr(TorchExecutor, "launch", counted_launch)
    served = Served(make_executor(llama, max_in_flight_steps=depth))
    wanted = {f"s{number}": (make_prompt(5 + 7 * number, number), 20 + 9 * number) for number in range(5)}
    for seq_id, (prompt, max_tokens) in wanted.items():
        served.add(seq_id, prompt, max_tokens)
        for _ in range(8):
            served.turn()
    while served.turn():
        pass

    assert 0 < num_looks < num_steps // 2  # rows that decode on are not looked at again
    assert served.output == {seq_id: reference(llama, *one) for seq_id, one in wanted.items()}
