"""Figures that only count up, for Prometheus: what this process has read from the stream since it started."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from scheduler_worker.protocol.messages import GatewayTelemetry, LatencySample, WorkerTelemetry

LATENCY_BOUNDS_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
TPOT_BOUNDS_S: Final = (
    0.005,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.06,
    0.08,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
)


@dataclass(slots=True)
class Histogram:
    """Samples by bound (not cumulative; the last one has no bound), and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Counter(dict[tuple[str, ...], float]):
    """Amounts by labels."""

    def add(self, *labels: str, amount: float = 1) -> None:
        self[labels] = self.get(labels, 0) + amount


class Histograms(dict[str, Histogram]):
    """A histogram by class."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__()
        self._bounds = bounds

    def observe(self, class_id: str, value: float | None) -> None:
        if value is None:
            return
        if class_id not in self:
            self[class_id] = Histogram(self._bounds)
        self[class_id].observe(value)


class Totals:
    """All counters and histograms."""

    def __init__(self) -> None:
        self.ttft = Histograms(LATENCY_BOUNDS_S)
        self.tpot = Histograms(TPOT_BOUNDS_S)
        self.e2e = Histograms(LATENCY_BOUNDS_S)
        self.arrivals = Counter()
        self.refused = Counter()
        self.finished = Counter()
        self.met = Counter()
        self.output_tokens = Counter()
        self.prompt_tokens = Counter()
        self.generated_tokens = Counter()
        self.steps = Counter()
        self.preemptions = Counter()

    def take_gateway(self, message: GatewayTelemetry) -> None:
        for class_id, num in message.arrivals.items():
            self.arrivals.add(class_id, amount=num)
        for class_id, num in message.refused.items():
            self.refused.add(class_id, amount=num)
        for class_id, num in message.output_tokens.items():
            self.output_tokens.add(class_id, amount=num)
        for sample in message.first_tokens:
            self.ttft.observe(sample.class_id, sample.ttft_s)
        for sample in message.finished:
            self._finish(sample)

    def _finish(self, sample: LatencySample) -> None:
        self.tpot.observe(sample.class_id, sample.tpot_s)
        self.e2e.observe(sample.class_id, sample.e2e_s)
        self.finished.add(sample.class_id, sample.outcome or "unknown")
        if sample.met:
            self.met.add(sample.class_id)

    def take_worker(self, message: WorkerTelemetry) -> None:
        self.steps.add(message.worker, amount=message.num_steps)
        self.prompt_tokens.add(message.worker, amount=message.num_prompt_tokens)
        for class_id, num in message.num_generated_tokens.items():
            self.generated_tokens.add(message.worker, class_id, amount=num)
        for event in message.events:
            if event.kind == "preempted":
                self.preemptions.add(event.class_id, event.reason)
