"""Recorded traffic under several policies, on workers as they are: what an operator asks before publishing.

`python -m scheduler_worker.sim.replay` reads one job as JSON from its input and writes JSON lines: `{"done", "total"}`
about once a second, at the end `{"runs"}` or `{"error"}`. A process of its own, of low priority: nothing that serves
requests waits for it, and whoever asked can end it at any time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Final, TextIO

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Applied, Capacity
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.sim.admission import SimulatedAdmission
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.report import Figures, met, nearest_rank
from scheduler_worker.sim.run import History, Options, Outcome, Simulation, SimulationStalled
from scheduler_worker.sim.trace import Request

Ended = Callable[[int], None]
NICENESS: Final = 10
TELL_EVERY_S: Final = 1.0


@dataclass(frozen=True)
class WorkerSize:
    """A worker as it announces itself; `cost_model` are the figures of `CostModel.to_dict`."""

    num_slots: int
    num_blocks: int
    block_size: int
    max_model_len: int
    cost_model: Mapping[str, float]

    @property
    def capacity(self) -> Capacity:
        """As many blocks fit the host's memory as the device's: how many really do is not announced."""
        return Capacity(
            num_slots=self.num_slots,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            num_swap_blocks=self.num_blocks,
        )

    @property
    def cost(self) -> StepCost:
        """The simulated device: a step takes what the worker learned."""
        known = self.cost_model
        return StepCost(
            base_s=known["base_s"],
            row_s=known["decode_row_s"],
            prefill_token_s=known["prefill_token_s"],
            kv_token_s=known["kv_token_s"],
            attention_pair_s=known["attention_pair_s"],
            swap_block_s=self.capacity.swap_block_s,
        )


def replay(
    policy: Policy, requests: Sequence[Request], workers: Sequence[WorkerSize], ended: Ended | None = None
) -> Figures:
    """What would have become of `requests`, in order of arrival, by class of the policy.

    A request of a class that the policy retired counts for its heir, one of an unknown class for the default.
    `ended` hears how many answers have ended. Raises `SimulationStalled`.
    """
    resolved = [replace(one, class_id=served_by(policy, one.class_id)) for one in requests]
    history = _simulate(policy, resolved, workers, ended)
    num_tokens = sum(map(_tokens, history.outcomes))
    by_class: dict[str, list[Outcome]] = {one.id: [] for one in policy.classes}
    for outcome in history.outcomes:
        by_class[outcome.request.class_id].append(outcome)
    return {one.id: _class_figures(by_class[one.id], one, num_tokens) for one in policy.classes}


def served_by(policy: Policy, class_id: str) -> str:
    """The id of the class that serves requests of `class_id`."""
    try:
        return policy.find(class_id).id
    except KeyError:
        return policy.default_class or policy.least_urgent().id


def _simulate(
    policy: Policy, requests: Sequence[Request], workers: Sequence[WorkerSize], ended: Ended | None
) -> History:
    num_ended = 0

    def observe(applied: Applied) -> None:
        nonlocal num_ended
        num_ended += len(applied.finished)
        if ended is not None and applied.finished:
            ended(num_ended)

    capacities = [one.capacity for one in workers]
    schedulers = [
        Scheduler(policy, one.capacity, cost_model=CostModel.from_dict(one.cost_model)) for one in workers
    ]
    admission = SimulatedAdmission(policy, schedulers, capacities)
    costs = [one.cost for one in workers]
    return Simulation(requests, schedulers, costs, Options(keep_events=False), admission, observe).run()


def _tokens(outcome: Outcome) -> int:
    return 0 if outcome.refused else outcome.request.num_prompt_tokens + outcome.num_output_tokens


def _class_figures(outcomes: Sequence[Outcome], rules: ClassPolicy, num_tokens: int) -> Figures:
    """`within` is the share of the accepted that met both objectives; None where none was accepted."""
    served = [one for one in outcomes if not one.refused]
    ttfts = sorted(one.ttft_s for one in served if one.ttft_s is not None)
    return {
        "num": len(outcomes),
        "num_refused": len(outcomes) - len(served),
        "within": sum(met(one, rules) for one in served) / len(served) if served else None,
        "target": rules.slo.target,
        "ttft_objective_s": rules.slo.ttft_s,
        "tpot_objective_s": rules.slo.tpot_s,
        "ttft_p50_s": nearest_rank(ttfts, 0.5),
        "ttft_p99_s": nearest_rank(ttfts, 0.99),
        "token_share": sum(map(_tokens, outcomes)) / num_tokens if num_tokens else None,
        "longest_wait_s": max((one.wait_s or 0.0 for one in served), default=None),
    }


class Told:
    """Says how far all runs together have come, at most once a second."""

    def __init__(self, out: TextIO, num_requests: int, num_runs: int) -> None:
        self._out = out
        self._num_requests, self._total = num_requests, num_requests * num_runs
        self._before = 0
        self._told_at = monotonic()

    def ended(self, num: int) -> None:
        """So many answers of the run under way have ended."""
        now = monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            self.say({"done": self._before + num, "total": self._total})

    def next_run(self) -> None:
        """A run is over."""
        self._before += self._num_requests
        self.say({"done": self._before, "total": self._total})

    def say(self, message: Mapping[str, Any]) -> None:
        """One line. A reader that is gone ends the process: nobody waits for the result."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


def run_job(job: Mapping[str, Any], out: TextIO) -> None:
    """All runs of a job, one after the other; the result is the last line."""
    requests = [Request(**one) for one in job["requests"]]
    workers = [WorkerSize(**one) for one in job["workers"]]
    told = Told(out, len(requests), len(job["policies"]))
    runs: Figures = {}
    for name, document in job["policies"].items():
        try:
            runs[name] = replay(Policy.model_validate(document), requests, workers, told.ended)
        except SimulationStalled as error:
            told.say({"error": f"Under the {name} policy the simulated workers stopped: {error}."})
            return
        told.next_run()
    told.say({"runs": runs})


def main() -> None:
    """Read the job, run it, say what came of it."""
    os.nice(NICENESS)
    try:
        run_job(json.load(sys.stdin), sys.stdout)
    except BrokenPipeError:
        os._exit(1)  # not even a flush at the end


if __name__ == "__main__":
    main()
