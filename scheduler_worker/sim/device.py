"""What a device would say of a step, if only the ends of answers were known."""

from __future__ import annotations

from collections.abc import Callable

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import RowResult, StepPlan, StepResult


def answer(plan: StepPlan, stops: Callable[[str], bool], duration_s: float) -> StepResult:
    """A token for each chunk that samples; `stops`, asked once for each, says whether it is the sequence's last.

    As executors do, it hands back the plan's own values of decoding rows that go on, and names the others.
    """
    chunks = StepChunks.of(plan)
    decodes = list(chunks.decodes.expected)
    odd = [place for place, seq_id in enumerate(chunks.decodes.seq_ids) if stops(seq_id)]
    for place in odd:
        decodes[place] = RowResult(decodes[place].seq_id, 1, True)
    others = [
        RowResult(chunk.seq_id, int(chunk.samples), chunk.samples and stops(chunk.seq_id))
        for chunk in chunks.others
    ]
    return StepResult(plan.step, (*decodes, *others), duration_s, odd=tuple(odd))
