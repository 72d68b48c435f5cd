"""Who waits past the bound that was promised, told when the bound passes, and why.

The cause is what the numbers show: steps that take longer than they used to; or more urgent work than admission could
foresee, by more than the margin it holds back; or neither, and then the estimate was off.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from scheduler_worker.core.forecast import ArrivalRate
from scheduler_worker.core.plan import Reason
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.sequence import Foreseen, Sequence, SequenceState

MAX_SLOWNESS: Final = 1.15
SAMPLE_EVERY_S: Final = 0.05
Entry = tuple[float, int, int, Sequence]  # bound, arrival number, number of the push, sequence


class Bounds:
    """Bounds of those that wait, the next to pass first: a look at it costs the same however many wait."""

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._num_pushed = 0
        self._compact_at = 64
        self._arrived: dict[str, float] = {}
        self._unsampled: dict[str, float] = {}
        self._rates: dict[str, ArrivalRate] = {}
        self._per_s: dict[str, float] = {}
        self._sampled_at = float("-inf")

    def __len__(self) -> int:
        return len(self._heap)

    def entered(self, sequence: Sequence, policy: Policy, cost: float, served_cost: float, now: float) -> None:
        """The sequence begins to wait; its work of `cost` counts among what its class brings."""
        if now - self._sampled_at >= SAMPLE_EVERY_S:
            self._sample(now)
        urgent = [one.id for one in policy.classes if one.rank < sequence.rank]
        per_s = sum(self._per_s.get(one, 0.0) for one in urgent)
        sequence.foreseen = Foreseen(now, self._brought_by(urgent), per_s, served_cost)
        class_id = sequence.class_id
        self._arrived[class_id] = self._arrived.get(class_id, 0.0) + cost
        self._unsampled[class_id] = self._unsampled.get(class_id, 0.0) + cost
        self.watch(sequence)

    def _sample(self, now: float) -> None:
        """Bring the rates up to date: not at each arrival, because that would double its price."""
        self._sampled_at = now
        for class_id, cost in self._unsampled.items():
            rate = self._rates.setdefault(class_id, ArrivalRate())
            rate.add(cost, now)
            self._per_s[class_id] = rate.value(now)
            self._unsampled[class_id] = 0.0

    def _brought_by(self, class_ids: Iterable[str]) -> float:
        return sum(self._arrived.get(one, 0.0) for one in class_ids)

    def watch(self, sequence: Sequence) -> None:
        """From now on the sequence's `bound_at` counts, and only that one."""
        self._num_pushed += 1
        heappush(self._heap, (sequence.bound_at, sequence.number, self._num_pushed, sequence))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if _is_due(entry)]
            heapify(self._heap)
            self._compact_at = 2 * len(self._heap) + 64

    def watch_all(self, sequences: Iterable[Sequence]) -> None:
        """All bounds have changed; these wait."""
        numbered = enumerate(sequences, start=self._num_pushed + 1)
        self._heap = [(one.bound_at, one.number, number, one) for number, one in numbered]
        self._num_pushed += len(self._heap)
        heapify(self._heap)
        self._compact_at = 2 * len(self._heap) + 64

    def passed(self, now: float) -> list[Sequence]:
        """Those whose bound has passed while they wait, each once."""
        found: list[Sequence] = []
        heap = self._heap
        while heap and heap[0][0] < now:
            entry = heappop(heap)
            if _is_due(entry):
                entry[3].is_bound_settled = True
                found.append(entry[3])
        return found

    def cause(
        self, sequence: Sequence, policy: Policy, served_cost: float, slowness: float, now: float
    ) -> tuple[Reason, dict[str, float | int | str]]:
        """Why the bound was missed, and the numbers that say so. `served_cost` is this worker's until now."""
        numbers: dict[str, float | int | str] = {"late_s": now - sequence.bound_at, "slowness": slowness}
        if slowness > MAX_SLOWNESS:
            return Reason.WORKER_SLOWED, numbers
        then = sequence.foreseen
        if then is not None:
            urgent = [one.id for one in policy.classes if one.rank < sequence.rank]
            brought = self._brought_by(urgent) - then.urgent_cost
            excess = brought - then.urgent_cost_per_s * (now - then.at)
            margin = policy.admission.capacity_margin * (served_cost - then.served_cost)
            if excess > margin:
                numbers |= {"urgent_tokens": brought, "excess_tokens": excess, "margin_tokens": margin}
                return Reason.MORE_URGENT_WORK, numbers
        return Reason.ESTIMATE_WAS_OFF, numbers


def _is_due(entry: Entry) -> bool:
    """Whether the entry's sequence still waits with this bound."""
    bound_at, _, _, sequence = entry
    is_over = sequence.is_bound_settled or sequence.state is SequenceState.FINISHED
    return not is_over and sequence.bound_at == bound_at
