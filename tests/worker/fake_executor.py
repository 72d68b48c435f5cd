"""An executor without a model: each token is a checksum of all before it, so that a wrong context shows."""

from __future__ import annotations

import time
from array import array
from collections import deque
from dataclasses import dataclass, field
from zlib import crc32

from scheduler_worker.core.plan import Capacity, Chunk, StepPlan
from scheduler_worker.executor import ExecutorInfo, OutOfMemory, RowOutput, SequenceInput, StepOutput

VOCABULARY = 50_000
BAD_TOKEN = 49_999
"""A prompt with this token fails alone."""
POISON_TOKEN = 49_998
"""A prompt with this token is a defect: the executor raises."""


def next_token(token_ids: list[int]) -> int:
    """The one continuation of these tokens."""
    return crc32(array("I", token_ids).tobytes()) % 40_000


def continuation(prompt: list[int], num_tokens: int) -> list[int]:
    """What a correct worker generates."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class FakeExecutor:
    """Takes `step_s` a step. Up to `max_rows` rows fit its memory."""

    step_s: float = 0.0
    num_slots: int = 8
    num_blocks: int = 512
    block_size: int = 16
    max_model_len: int = 1024
    max_in_flight_steps: int = 1
    max_rows: int = 10_000
    sequences: dict[str, list[int]] = field(default_factory=dict)
    inputs: dict[str, SequenceInput] = field(default_factory=dict)
    launched: deque[StepPlan] = field(default_factory=deque)

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            num_slots=self.num_slots,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            max_in_flight_steps=self.max_in_flight_steps,
        )

    @property
    def info(self) -> ExecutorInfo:
        return ExecutorInfo("fake", "cpu", "fake processor", "float32", "none", 1 << 30, 0, 0)

    def add(self, sequence: SequenceInput) -> None:
        self.inputs[sequence.seq_id] = sequence
        self.sequences[sequence.seq_id] = list(sequence.token_ids)

    def launch(self, plan: StepPlan) -> None:
        if len(plan.chunks) > self.max_rows:
            raise OutOfMemory(f"{len(plan.chunks)} rows, room for {self.max_rows}")
        self.launched.append(plan)

    def collect(self) -> StepOutput:
        plan = self.launched.popleft()
        started = time.perf_counter()
        if self.step_s:
            time.sleep(self.step_s)
        rows = tuple(self._row(chunk) for chunk in plan.chunks)
        duration_s = max(time.perf_counter() - started, 1e-6)
        return StepOutput(plan.step, rows, duration_s, forward_s=duration_s)

    def remove(self, seq_id: str) -> None:
        self.sequences.pop(seq_id, None)
        self.inputs.pop(seq_id, None)

    def close(self) -> None:
        self.sequences.clear()

    def _row(self, chunk: Chunk) -> RowOutput:
        tokens = self.sequences[chunk.seq_id]
        if POISON_TOKEN in tokens[:8]:
            raise ZeroDivisionError("a defect of the executor")
        if BAD_TOKEN in tokens[:8]:
            return RowOutput(chunk.seq_id, (), error="a token is outside the vocabulary")
        if not chunk.samples:
            return RowOutput(chunk.seq_id, ())
        assert chunk.start + chunk.num_tokens == len(tokens), "the plan skips tokens"
        token = next_token(tokens)
        tokens.append(token)
        return RowOutput(chunk.seq_id, (token,), token in self.inputs[chunk.seq_id].sampling.stop_token_ids)
