"""From a computed step to the rows of its `StepOutput`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from math import isfinite
from typing import Any

import torch

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import FilledBlock, StepPlan
from scheduler_worker.engine.mapped import Landing
from scheduler_worker.engine.rows import StepRows
from scheduler_worker.engine.sampling import Sampled
from scheduler_worker.engine.sequences import EngineSequence
from scheduler_worker.executor import RowOutput
from scheduler_worker.protocol.messages import TokenLogprobs

NOT_FINITE = "the model's logits are not finite"


@dataclass(slots=True)
class LaunchedStep:
    """A step that was launched. `rows` are those that are computed, if any; `failed` has why others never entered the
    batch, by place in the plan. `broken`: rows whose logits were not finite, once it is collected."""

    plan: StepPlan
    chunks: StepChunks
    rows: StepRows | None = None
    failed: dict[int, str] = field(default_factory=dict)
    sampled: Sampled | None = None
    forward_s: float = 0.0
    host_s: float = 0.0
    landing: Landing | None = None
    broken: list[int] = field(default_factory=list)
    is_plain: bool = False

    def duration_s(self) -> float:
        """The device's time for this step, in seconds; call once it is done."""
        if self.landing is None:
            return self.host_s
        seconds: float = self.landing.started.elapsed_time(self.landing.done) / 1e3
        return seconds


def step_rows(step: LaunchedStep) -> tuple[RowOutput, ...]:
    """One row per chunk, in the plan's order; new tokens are appended to their sequences.

    Rows with broken logits get an error and are listed in `step.broken`; `step.is_plain` is set.
    """
    found: list[RowOutput] = []
    if step.rows is not None and step.sampled is not None:
        found = _outputs(step, step.rows, step.sampled)
        if len(found) == len(step.chunks):
            return _in_order(step.rows.places, found)
    outputs: dict[int, RowOutput] = {}
    if step.rows is not None:
        outputs.update(zip(step.rows.places, found, strict=False))
    for place, error in step.failed.items():
        outputs[place] = RowOutput(step.chunks.at(place).seq_id, (), error=error)
    step.is_plain = False
    return tuple([outputs[place] for place in sorted(outputs)])


def _in_order(places: list[int], rows: list[RowOutput]) -> tuple[RowOutput, ...]:
    ordered = rows.copy()
    for place, row in zip(places, rows, strict=True):
        ordered[place] = row
    return tuple(ordered)


def _outputs(step: LaunchedStep, rows: StepRows, sampled: Sampled) -> list[RowOutput]:
    """Of the computed rows, in their own order."""
    ids, peaks = _as_list(sampled.ids), _as_list(sampled.peaks)
    if sampled.logprob_rows is not None or not (rows.all_sample and all(map(isfinite, peaks))):
        return _outputs_one_by_one(step, rows, sampled, ids, peaks)
    sequences = rows.sequences
    for sequence, token_id in zip(sequences, ids, strict=True):
        sequence.num_pending -= 1
        sequence.tokens.append(token_id)
    stopped = [token_id in sequence.stop_ids for sequence, token_id in zip(sequences, ids, strict=True)]
    step.is_plain = not any(stopped)
    columns = zip(
        [sequence.seq_id for sequence in sequences],
        zip(ids, strict=True),
        stopped,
        repeat(None),
        repeat(None),
        strict=False,
    )
    return list(map(tuple.__new__, repeat(RowOutput), columns))


def _as_list(values: torch.Tensor | list[Any]) -> list[Any]:
    return values if isinstance(values, list) else values.tolist()


def _outputs_one_by_one(
    step: LaunchedStep, rows: StepRows, sampled: Sampled, ids: list[int], peaks: list[float]
) -> list[RowOutput]:
    """Where a row may have no token, a broken one, or log probabilities."""
    samples = rows.samples.tolist()
    logprobs = _logprob_reader(sampled)
    step.is_plain = True
    outputs: list[RowOutput] = []
    for index, sequence in enumerate(rows.sequences):
        sequence.num_pending -= samples[index]
        if not isfinite(peaks[index]):
            step.broken.append(index)
            outputs.append(RowOutput(sequence.seq_id, (), error=NOT_FINITE))
            step.is_plain = False
        elif samples[index]:
            token_id = ids[index]
            sequence.tokens.append(token_id)
            reported = logprobs(index, sequence, token_id) if logprobs else None
            stopped = token_id in sequence.stop_ids
            outputs.append(RowOutput(sequence.seq_id, (token_id,), stopped, None, reported))
            step.is_plain = step.is_plain and not stopped
        else:
            outputs.append(RowOutput(sequence.seq_id, ()))
            step.is_plain = False
    return outputs


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
    rows = step.rows
    if rows is None:
        return ()
    filled: list[FilledBlock] = []
    for row, (start, count) in enumerate(zip(rows.starts.tolist(), rows.counts.tolist(), strict=True)):
        if start % block_size + count < block_size or row in step.broken:
            continue
        sequence = rows.sequences[row]
        filled += [
            FilledBlock(sequence.seq_id, index, sequence.block_hash(index, block_size))
            for index in range(start // block_size, (start + count) // block_size)
        ]
    return tuple(filled)
