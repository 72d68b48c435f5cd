"""What the loop counts between two telemetry messages. Cheap to fill: the reporter does the rest."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from typing import Final

from scheduler_worker.core.plan import Event, Snapshot, StepPlan, TenantService
from scheduler_worker.executor import StepOutput

RECENT_S: Final = 60.0


class RecentService:
    """What each tenant of one class was served in the last minute, from counters that only count up."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self._last: dict[str, float] = {}
        self._rises: deque[tuple[float, dict[str, float]]] = deque()

    def read(self, services: Mapping[str, TenantService], at: float) -> None:
        """Take the counters at `at`. An account that was forgotten while idle starts over at zero."""
        rises: dict[str, float] = {}
        for tenant, one in services.items():
            before = self._last.get(tenant, 0.0)
            rise = one.service_tokens - before if one.service_tokens >= before else one.service_tokens
            if rise > 0.0:
                rises[tenant] = rise
        self._last = {tenant: one.service_tokens for tenant, one in services.items()}
        if rises:
            self._rises.append((at, rises))
            self.tokens.update(rises)  # type: ignore[arg-type]
        self._forget(at - RECENT_S)

    def _forget(self, until: float) -> None:
        while self._rises and self._rises[0][0] <= until:
            self.tokens.subtract(self._rises.popleft()[1])  # type: ignore[arg-type]
        if not self._rises:
            self.tokens.clear()  # what rounding left behind must not outlive the rises


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

    def close(self, snapshot: Snapshot, cost_model: dict[str, float], draining: bool) -> None:
        """Nothing is added any more."""
        self.cost_model = cost_model
        self.interval_s = time.monotonic() - self.opened
        self.snapshot = snapshot
        self.draining = draining
