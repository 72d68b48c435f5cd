"""Random numbers as a function of (seed, token index): the same in every process, batch and device.

SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) as a counter-based
generator: the state after `n` steps is `seed + n × gamma`, so any draw can be computed without those before
it.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11))
_TO_UNIT: Final = 2.0**-53


def uniform(seeds: npt.NDArray[np.uint64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each pair of seed and token index."""
    counters = indices.astype(np.uint64) + np.uint64(1)
    bits = _mix(_mix(seeds) + counters * _GAMMA) >> _SHIFTS[3]
    return bits.astype(np.float64) * _TO_UNIT


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> _SHIFTS[0])) * _MIX_1
    state = (state ^ (state >> _SHIFTS[1])) * _MIX_2
    return state ^ (state >> _SHIFTS[2])
