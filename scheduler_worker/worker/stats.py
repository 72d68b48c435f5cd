"""What the loop counts between two telemetry messages. Cheap to fill: the reporter does the rest."""

from __future__ import annotations

import time
from collections import defaultdict

from scheduler_worker.core.plan import Event, Snapshot, StepPlan
from scheduler_worker.executor import StepOutput


class LoopStats:
    """Filled by the loop, closed with a snapshot, then read by the reporter."""

    def __init__(self) -> None:
        self.opened = time.monotonic()
        self.interval_s = 0.0
        self.events: list[Event] = []
        self.durations_s: list[float] = []
        self.overheads_s: list[float] = []
        self.num_prompt_tokens = 0
        self.num_generated_tokens: defaultdict[str, int] = defaultdict(int)
        self.snapshot: Snapshot | None = None
        self.draining = False
        self.cost_model: dict[str, float] = {}

    def step_applied(self, plan: StepPlan) -> None:
        """Count a step's prompt tokens."""
        self.num_prompt_tokens += plan.shape.num_prefill_tokens

    def step_ended(self, output: StepOutput, wall_s: float) -> None:
        """Time a turn with a step. All but the model's forward pass is overhead, where that can be told."""
        self.durations_s.append(output.duration_s)
        if output.forward_s > 0.0:
            self.overheads_s.append(wall_s - output.forward_s)

    def count_tokens(self, class_id: str, num_tokens: int) -> None:
        """Count a sequence's new tokens."""
        self.num_generated_tokens[class_id] += num_tokens

    def close(self, snapshot: Snapshot, cost_model: dict[str, float], draining: bool) -> None:
        """Nothing is added any more."""
        self.cost_model = cost_model
        self.interval_s = time.monotonic() - self.opened
        self.snapshot = snapshot
        self.draining = draining
