"""A mergeable latency sketch with a bounded relative error, for what is kept longer than the exact window.

Logarithmic buckets as in DDSketch (Masson, Rim and Lee, 2019, arXiv 1908.10693): bucket i holds (γ^(i−1),
γ^i] with γ = (1 + ε)/(1 − ε), and stands for 2γ^i/(γ + 1), which is within ε of every value in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from controlplane.telemetry.schema import Percentiles
from controlplane.telemetry.windows import percentiles

RELATIVE_ERROR: Final = 0.01
LEAST_S: Final = 1e-6
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)

Sketch = dict[int, int]
"""Number of samples by bucket."""


def bucket_of(value: float) -> int:
    """The bucket of a latency in seconds; below a microsecond all are alike."""
    return math.ceil(math.log(max(value, LEAST_S)) / _LOG_GAMMA)


def value_of(bucket: int) -> float:
    """The latency that a bucket stands for, in seconds."""
    return 2 * _GAMMA**bucket / (_GAMMA + 1)


def sketch_of(values: Iterable[float]) -> Sketch:
    counts: Sketch = {}
    for value in values:
        bucket = bucket_of(value)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merge(sketches: Iterable[Mapping[int, int]]) -> Sketch:
    """One sketch of all samples of several."""
    merged: Sketch = {}
    for sketch in sketches:
        for bucket, num in sketch.items():
            merged[bucket] = merged.get(bucket, 0) + num
    return merged


def values(sketch: Mapping[int, int]) -> Iterator[float]:
    """As many values as the sketch has samples, smallest first."""
    for bucket in sorted(sketch):
        yield from [value_of(bucket)] * sketch[bucket]


def sketch_percentiles(sketch: Mapping[int, int]) -> Percentiles:
    """p50, p95 and p99, each within 1 % of the exact nearest-rank figure."""
    return percentiles(list(values(sketch)))


def to_json(sketch: Mapping[int, int]) -> dict[str, int]:
    """JSON has no integer keys."""
    return {str(bucket): sketch[bucket] for bucket in sorted(sketch)}


def from_json(stored: Mapping[str, int]) -> Sketch:
    return {int(bucket): num for bucket, num in stored.items()}
