"""The scheduler's verbs. The core decides; whoever calls it does the rest.

A worker's step:

    candidates = scheduler.claim_candidates(now)      # who would start within two steps
    scheduler.claim(won, now); scheduler.withdraw(lost, now)
    plan = scheduler.plan_step(now)                    # reads only
    scheduler.begin(plan)                              # books slots, blocks, charges, placeholders
    applied = scheduler.apply_result(result, now)      # oldest plan first

`now` is in seconds and never goes back. Nothing here blocks, reads a clock or draws a random number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from scheduler_worker.core.plan import Applied, Snapshot, StepPlan, StepResult
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.sequence import SequenceHeader


class SchedulerVerbs(Protocol):
    """What the worker, the simulator and the tests call. `Scheduler(policy, capacity, …)` implements it."""

    def add(self, header: SequenceHeader, now: float) -> Applied:
        """A request waits. Idempotent by `seq_id`; a header with a higher attempt replaces the older one.

        One that can never run here (longer than the context, more blocks than there are) ends at once, failed.
        """

    def withdraw(self, seq_ids: Iterable[str], now: float) -> Applied:
        """Waiting sequences that another worker claimed. Unknown ids are ignored."""

    def cancel(self, seq_id: str, now: float) -> Applied:
        """End a sequence in any state; what is in flight for it is dropped. Unknown ids are ignored."""

    def claim_candidates(self, now: float) -> tuple[str, ...]:
        """Waiting sequences that would start within two steps, counting what preemption could take; best first."""

    def claim(self, seq_ids: Iterable[str], now: float) -> None:
        """These are ours; `plan_step` may start them."""

    def plan_step(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to run or too many steps are in flight. Reads only."""

    def begin(self, plan: StepPlan) -> None:
        """Book the plan. Plans are begun in the order they were made, each before the next is planned."""

    def apply_result(self, result: StepResult, now: float) -> Applied:
        """Take the outcome of the oldest begun plan."""

    def fail_step(self, now: float) -> Applied:
        """The device ran out of memory: unbook all begun plans and shrink the batch limit."""

    def set_policy(self, policy: Policy, version: int, now: float) -> Applied:
        """Rules from the next step on. No sequence is lost."""

    def snapshot(self, now: float) -> Snapshot:
        """What telemetry shows."""

    def has_work(self) -> bool:
        """Whether any claimed, running or parked sequence could make progress."""
