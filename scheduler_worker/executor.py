"""The boundary between scheduling and a model: a `StepPlan` goes in, tokens come out.

`engine` implements it with torch, `sim` with a clock, tests with a fake; an external engine would be one more.
Of a plan's steps at most `Capacity.max_in_flight_steps` are launched and not yet collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import Capacity, FilledBlock, RowResult, StepPlan, StepResult
from scheduler_worker.protocol.messages import SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What an executor is: shown to operators, never used to decide."""

    model: str
    device: str
    device_name: str
    dtype: str
    attention_backend: str
    memory_total_bytes: int
    weights_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """A claimed request's tokens. `token_ids` holds the prompt and, for a request that another worker began, the
    tokens generated so far (`num_prompt_tokens` tells them apart)."""

    seq_id: str
    token_ids: Sequence[int]
    num_prompt_tokens: int
    sampling: SamplingParams


class RowOutput(NamedTuple):
    """One chunk's outcome: at most one token a step. `stopped`: the token was EOS or a stop token.

    A named tuple because one is made per row and step.
    """

    seq_id: str
    token_ids: tuple[int, ...]
    stopped: bool = False
    error: str | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Rows in the order of the plan's chunks. `duration_s` is the device's time for the step, `forward_s` the part
    spent inside the model's forward pass (CPU only, else 0). `is_plain`: every row yielded a token and goes on."""

    step: int
    rows: tuple[RowOutput, ...]
    duration_s: float
    forward_s: float = 0.0
    filled_blocks: tuple[FilledBlock, ...] = ()
    is_plain: bool = False


def to_result(plan: StepPlan, output: StepOutput) -> StepResult:
    """What the scheduler is told of an output. Of rows that did what the plan expects it has the results already."""
    expected = StepChunks.of(plan).decodes.expected
    if output.is_plain and len(expected) == len(output.rows):
        return StepResult(output.step, expected, output.duration_s, output.filled_blocks, odd=())
    odd = tuple([
        place
        for place, (one, known) in enumerate(zip(output.rows, expected, strict=False))
        if len(one.token_ids) != 1 or one.stopped or one.error is not None or one.seq_id != known.seq_id
    ])
    rows = [*expected[: len(output.rows)], *map(_result, output.rows[len(expected) :])]
    for place in odd:
        rows[place] = _result(output.rows[place])
    return StepResult(output.step, tuple(rows), output.duration_s, output.filled_blocks, odd)


def _result(row: RowOutput) -> RowResult:
    return RowResult(row.seq_id, len(row.token_ids), row.stopped, row.error)


class Executor(Protocol):
    """Runs plans. Calls come from one thread.

    Errors: a bad sequence fails its own row (`RowOutput.error`). `OutOfMemory` means that the whole step was not
    computed and may be planned again, smaller.
    """

    @property
    def capacity(self) -> Capacity: ...

    @property
    def info(self) -> ExecutorInfo: ...

    def add(self, sequence: SequenceInput) -> None:
        """Make a sequence known before the first plan that names it."""

    def launch(self, plan: StepPlan) -> None:
        """Start a booked plan; returns without waiting for its tokens where the device allows."""

    def collect(self) -> StepOutput:
        """The output of the oldest launched plan; waits for it."""

    def remove(self, seq_id: str) -> None:
        """Forget a sequence that no outstanding plan names. Unknown ids are ignored."""

    def close(self) -> None:
        """Release the device."""


class OutOfMemory(RuntimeError):
    """The device had no memory for the step; nothing of it was computed."""
