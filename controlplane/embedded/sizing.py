"""From a machine's measured speed to a policy that it can keep and a load that it can carry. Pure arithmetic.

The promises are made so that they hold at the resting load with everything else running on the same machine,
and so that a burst visibly strains them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scheduler_worker.core.policy import BatchLimit, ClassPolicy, Policy, Preemption, Slo, Step

USUAL_BATCH = 8
LONG_PROMPT_TOKENS = 256
TPOT_HEADROOM = 2.0
TTFT_HEADROOM = 3.0
MIN_TPOT_S = 0.02
MIN_TTFT_S = 0.1
MIN_RESCUE_S = 0.05
RESCUE_STEPS = 2.0  # decisions fall once a step: what is due between two of them must be seen at the first
TARGET = 0.95
MEAN_PROMPT_TOKENS = 80
MEAN_OUTPUT_TOKENS = 45
RESTING_SHARE = 0.3
BURST_SHARE = 1.5
MAX_RESTING_RATE = 5.0


@dataclass(frozen=True, slots=True)
class Speed:
    """What `scheduler_worker.engine.calibration` measured: step times by batch size, prefill rate."""

    prefill_tokens_per_s: float
    decode_step_s: Mapping[int, float]

    @classmethod
    def from_json(cls, measured: Mapping[str, Any]) -> Speed:
        steps = {int(size): float(seconds) for size, seconds in measured["decode_step_s"].items()}
        return cls(float(measured["prefill_tokens_per_s"]), steps)

    @property
    def usual_batch(self) -> int:
        return max(size for size in self.decode_step_s if size <= USUAL_BATCH)

    @property
    def usual_step_s(self) -> float:
        return self.decode_step_s[self.usual_batch]

    @property
    def tokens_per_s(self) -> float:
        """Decode throughput at the usual batch."""
        return self.usual_batch / self.usual_step_s

    @property
    def requests_per_s(self) -> float:
        """How many of the load generator's requests an otherwise idle machine completes."""
        return 1 / (MEAN_OUTPUT_TOKENS / self.tokens_per_s + MEAN_PROMPT_TOKENS / self.prefill_tokens_per_s)


@dataclass(frozen=True, slots=True)
class Load:
    """Requests per second at rest; a burst of `burst_s` begins every `burst_every_s`."""

    rate_per_s: float
    burst_rate_per_s: float
    burst_s: float = 20.0
    burst_every_s: float = 180.0


def size_policy(speed: Speed) -> Policy:
    """Three classes whose objectives are multiples of the measured times."""
    tpot_s = max(MIN_TPOT_S, TPOT_HEADROOM * speed.usual_step_s)
    prefill_s = LONG_PROMPT_TOKENS / speed.prefill_tokens_per_s
    ttft_s = max(MIN_TTFT_S, TTFT_HEADROOM * (prefill_s + speed.usual_step_s))
    budget = _power_of_two(speed.prefill_tokens_per_s * tpot_s, least=128, most=8192)
    return Policy(
        classes=(
            _class("high", 0, 70, ttft_s, tpot_s, preemptible=False),
            _class("medium", 1, 20, 2.5 * ttft_s, 1.3 * tpot_s),
            _class("low", 2, 10, 12 * ttft_s, 2 * tpot_s),
        ),
        default_class="medium",
        batch_limit=_batch_limit(speed, tpot_s),
        step=Step(
            max_num_batched_tokens=budget,
            max_chunk_tokens=min(512, budget),
            rescue_within_s=_rounded_up(max(MIN_RESCUE_S, RESCUE_STEPS * speed.usual_step_s)),
        ),
    )


def _class(
    class_id: str, rank: int, weight: float, ttft_s: float, tpot_s: float, *, preemptible: bool = True
) -> ClassPolicy:
    ttft_s = _rounded_up(ttft_s)
    return ClassPolicy(
        id=class_id,
        rank=rank,
        weight=weight,
        slo=Slo(ttft_s=ttft_s, tpot_s=_rounded_up(tpot_s), target=TARGET),
        max_wait_s=max(30.0, _rounded_up(2 * ttft_s)),
        preemption=Preemption(preemptible=preemptible),
    )


def _batch_limit(speed: Speed, tpot_s: float) -> BatchLimit:
    """As many slots as still keep the tightest promise on an idle machine; the controller finds the rest."""
    within = [size for size, step_s in speed.decode_step_s.items() if step_s <= tpot_s / 1.2]
    max_slots = max(within, default=1)
    return BatchLimit(min_slots=min(4, max_slots), max_slots=max_slots)


def size_load(speed: Speed) -> Load:
    """A load that leaves the machine mostly idle, and bursts above what it can carry."""
    resting = min(MAX_RESTING_RATE, RESTING_SHARE * speed.requests_per_s)
    return Load(
        rate_per_s=round(resting, 3), burst_rate_per_s=round(resting * BURST_SHARE / RESTING_SHARE, 3)
    )


def _rounded_up(seconds: float) -> float:
    """Two significant digits, so that an operator reads 0.25 s and not 0.2437 s."""
    unit = 10 ** (math.floor(math.log10(seconds)) - 1)
    return round(math.ceil(seconds / unit - 1e-9) * unit, 6)


def _power_of_two(value: float, *, least: int, most: int) -> int:
    return min(most, max(least, 1 << max(0, round(math.log2(value)))))
