"""How many sequences may run at once, steered by the inter-token latency that decoding sequences see.

A sample is the p99 over decoding sequences of their mean ITL over `itl_window_steps` steps. All sequences that decode
in lockstep through the window saw the same steps, so the sample is the window's time over its steps. The mean of
`num_samples` samples against the target decides: above the band the limit shrinks, below it grows, but only while
the limit is what holds sequences back. The history is cleared after each change, and nobody is preempted to shrink.

Steps are planned for the tightest objective among those that decode. Where that changes from step to step, because a
class with a tight one comes and goes, the target is the mean over the steps that were measured: long steps that kept
a loose objective are no reason to shrink once a tight one runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler_worker.core.policy import BatchLimit as Rules


@dataclass(frozen=True, slots=True)
class LimitChange:
    """The limit moved from `before` to `after` because of this mean ITL against this target, in seconds."""

    before: int
    after: int
    itl_s: float
    target_s: float


class BatchLimit:
    """The controller. `limit` starts at the maximum: the latency of a full batch is what is to be learned."""

    def __init__(self, rules: Rules, num_slots: int) -> None:
        self._num_slots = num_slots
        self._samples: list[tuple[float, float, bool]] = []
        self._window_began_at: float | None = None
        self._window_steps = 0
        self._window_tpot_s = 0.0
        self.itl_s: float | None = None
        self.target_s: float | None = None
        self.set_rules(rules)
        self.limit = self.max_limit

    def set_rules(self, rules: Rules) -> None:
        """New rules; a limit outside the new range moves to its edge."""
        self.rules = rules
        self.max_limit = min(rules.max_slots or self._num_slots, self._num_slots)
        self.min_limit = min(rules.min_slots, self.max_limit)
        self.limit = min(max(getattr(self, "limit", self.max_limit), self.min_limit), self.max_limit)

    def target_for(self, tightest_tpot_s: float) -> float:
        """The ITL to aim at: the policy's, else the tightest running objective over the band's upper edge."""
        if self.rules.itl_target_s is not None:
            return self.rules.itl_target_s
        return tightest_tpot_s / self.rules.shrink_above

    def restart_window(self) -> None:
        """The sequences that were being watched stopped decoding together."""
        self._window_began_at = None

    def step_applied(
        self, at: float, num_steps_together: int, tightest_tpot_s: float | None, is_binding: bool
    ) -> LimitChange | None:
        """A step ended at `at` that was planned for this objective; None where nobody decoded in it.

        `num_steps_together` counts the steps that some sequence has decoded through without a gap; `is_binding`
        says that the limit holds sequences back.
        """
        if tightest_tpot_s is None:
            self.restart_window()
            return None
        if self._window_began_at is None:
            self._open_window(at)
            return None
        self._window_steps += 1
        self._window_tpot_s += tightest_tpot_s
        if self._window_steps < self.rules.itl_window_steps:
            return None
        num_steps, tpot_s = self._window_steps, self._window_tpot_s / self._window_steps
        sample = (at - self._window_began_at) / num_steps
        self._open_window(at)
        return self._take(sample, tpot_s, is_binding) if num_steps_together >= num_steps else None

    def _open_window(self, at: float) -> None:
        self._window_began_at, self._window_steps, self._window_tpot_s = at, 0, 0.0

    def _take(self, sample: float, tpot_s: float, is_binding: bool) -> LimitChange | None:
        self.itl_s, self.target_s = sample, self.target_for(tpot_s)
        self._samples.append((sample, tpot_s, is_binding))
        if len(self._samples) > self.rules.num_samples:
            self._samples.pop(0)
        if len(self._samples) < self.rules.num_samples:
            return None
        num = len(self._samples)
        mean_tpot_s = sum(tpot_s for _, tpot_s, _ in self._samples) / num
        return self._decide(sum(seconds for seconds, _, _ in self._samples) / num, self.target_for(mean_tpot_s))

    def _decide(self, mean_s: float, target_s: float) -> LimitChange | None:
        rules = self.rules
        wanted = self.limit
        if mean_s > rules.shrink_above * target_s:
            wanted = max(self.limit - rules.shrink_by, min(self.limit, self.min_limit))
        elif mean_s < rules.grow_below * target_s and self._is_binding():
            wanted = min(self.limit + rules.grow_by, self.max_limit)
        return None if wanted == self.limit else self._move(wanted, mean_s, target_s)

    def _is_binding(self) -> bool:
        """Whether the limit held sequences back in at least half of the samples."""
        return 2 * sum(binding for _, _, binding in self._samples) >= len(self._samples)

    def _move(self, wanted: int, mean_s: float, target_s: float) -> LimitChange:
        change = LimitChange(self.limit, wanted, mean_s, target_s)
        self.limit = wanted
        self._samples.clear()
        return change

    def out_of_memory(self, num_running: int) -> LimitChange:
        """A step did not fit the device: a quarter fewer sequences than ran, the minimum notwithstanding."""
        wanted = max(1, min(self.limit, num_running) * 3 // 4)
        return self._move(wanted, self.itl_s or 0.0, self.target_s or 0.0)
