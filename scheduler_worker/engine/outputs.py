"""From a computed step to the rows of its `StepOutput`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite

import torch

from scheduler_worker.core.plan import FilledBlock, StepPlan
from scheduler_worker.engine.batch import Row
from scheduler_worker.engine.sampling import Sampled
from scheduler_worker.engine.sequences import EngineSequence
from scheduler_worker.executor import RowOutput
from scheduler_worker.protocol.messages import TokenLogprobs

NOT_FINITE = "the model's logits are not finite"


@dataclass(slots=True)
class LaunchedStep:
    """A step that was launched: `failed` holds the rows that never entered the batch, by place in the
    plan."""

    plan: StepPlan
    rows: list[Row]
    failed: dict[int, str]
    sampled: Sampled | None = None
    forward_s: float = 0.0
    host_s: float = 0.0
    timing: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    broken: list[Row] = field(default_factory=list)
    is_plain: bool = False

    def duration_s(self) -> float:
        """The device's time for this step, in seconds; call once it is done."""
        if self.timing is None:
            return self.host_s
        started, done = self.timing
        return started.elapsed_time(done) / 1e3


def step_rows(step: LaunchedStep) -> tuple[RowOutput, ...]:
    """One row per chunk, in the plan's order; new tokens are appended to their sequences.

    Rows with broken logits get an error and are listed in `step.broken`; `step.is_plain` is set.
    """
    chunks = step.plan.chunks
    outputs: list[RowOutput | None] = [None] * len(chunks)
    for place, error in step.failed.items():
        outputs[place] = RowOutput(chunks[place].seq_id, (), error=error)
    if step.sampled is not None:
        _fill_outputs(step, step.sampled, outputs)
    return tuple(output for output in outputs if output is not None)


def _fill_outputs(step: LaunchedStep, sampled: Sampled, outputs: list[RowOutput | None]) -> None:
    ids = sampled.ids.tolist()
    peaks = sampled.peaks.tolist()
    logprobs = _logprob_reader(sampled)
    is_plain = len(step.rows) == len(outputs)
    for index, (place, sequence, chunk) in enumerate(step.rows):
        if chunk.samples:
            sequence.num_pending -= 1
        if not isfinite(peaks[index]):
            step.broken.append(step.rows[index])
            outputs[place] = RowOutput(chunk.seq_id, (), error=NOT_FINITE)
            is_plain = False
        elif chunk.samples:
            token_id = ids[index]
            sequence.tokens.append(token_id)
            reported = logprobs(index, sequence, token_id) if logprobs else None
            stopped = token_id in sequence.stop_ids
            outputs[place] = RowOutput(chunk.seq_id, (token_id,), stopped, None, reported)
            is_plain = is_plain and not stopped
        else:
            outputs[place] = RowOutput(chunk.seq_id, ())
            is_plain = False
    step.is_plain = is_plain


def _logprob_reader(
    sampled: Sampled,
) -> Callable[[int, EngineSequence, int], TokenLogprobs | None] | None:
    if sampled.logprob_rows is None or sampled.chosen_logprobs is None:
        return None
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    place = {int(row): index for index, row in enumerate(sampled.logprob_rows)}
    chosen, top_ids = sampled.chosen_logprobs.tolist(), sampled.top_ids.tolist()
    top_logprobs = sampled.top_logprobs.tolist()

    def read(row: int, sequence: EngineSequence, token_id: int) -> TokenLogprobs | None:
        index = place.get(row)
        if index is None:
            return None
        count = sequence.sampling.logprobs or 0
        top = tuple(zip(top_ids[index][:count], top_logprobs[index][:count], strict=True))
        return TokenLogprobs(token_id, chosen[index], top)

    return read


def filled_blocks(step: LaunchedStep, block_size: int) -> tuple[FilledBlock, ...]:
    """Blocks that this step filled to the end, with the hash of all tokens up to there; not those of broken
    rows."""
    broken = {sequence.seq_id for _, sequence, _ in step.broken} if step.broken else ()
    filled: list[FilledBlock] = []
    for _, sequence, chunk in step.rows:
        rest = chunk.start % block_size
        if rest + chunk.num_tokens < block_size:
            continue
        first, end = chunk.start // block_size, (chunk.start + chunk.num_tokens) // block_size
        if sequence.seq_id not in broken:
            filled += (
                FilledBlock(sequence.seq_id, index, sequence.block_hash(index, block_size))
                for index in range(first, end)
            )
    return tuple(filled)
