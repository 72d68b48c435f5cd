"""Host memory that the device reads and writes by itself, and kernels that do so.

A copy engine takes a few microseconds to begin and the next kernel as long to begin after it; a kernel that reads or
writes the host's memory begins like any other. For the few kilobytes that a step sends and brings back, that is most
of the time between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from scheduler_worker.engine.sampling import Sampled


class _AsCuda:
    """Pinned host memory as a device's array: with unified addresses, one pointer serves both."""

    def __init__(self, host: torch.Tensor) -> None:
        kind = "f" if host.dtype.is_floating_point else "i"
        self.__cuda_array_interface__ = {
            "shape": tuple(host.shape),
            "typestr": f"<{kind}{host.dtype.itemsize}",
            "data": (host.data_ptr(), False),
            "strides": None,
            "version": 2,
        }


def mapped(size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros in pinned memory, `[size]`, and the same memory as the device's tensor, which the first must outlive."""
    host = torch.zeros(size, dtype=dtype, pin_memory=True)
    return host, torch.as_tensor(_AsCuda(host), device=device)


def move(source: torch.Tensor, target: torch.Tensor) -> None:
    """Copy by a kernel in the current stream; either may be mapped host memory."""
    torch.add(source, 0, out=target)


@dataclass(slots=True)
class Landing:
    """One step's place on the host: its tokens and peaks, by row, and when it began and ended."""

    ids: torch.Tensor
    peaks: torch.Tensor
    device_ids: torch.Tensor
    device_peaks: torch.Tensor
    started: Any
    done: Any

    def bring(self, sampled: Sampled) -> Sampled:
        """The step's tokens on their way here; readable once the stream has got there."""
        count = len(sampled.ids)
        move(sampled.ids, self.device_ids[:count])
        move(sampled.peaks, self.device_peaks[:count])
        return sampled.beside(self.ids[:count], self.peaks[:count])


def landings(num_steps: int, num_rows: int, device: torch.device) -> list[Landing]:
    """Places for `num_steps` steps of at most `num_rows` rows."""
    made = []
    for _ in range(num_steps):
        (ids, device_ids), (peaks, device_peaks) = (
            mapped(num_rows, dtype, device) for dtype in (torch.int64, torch.float32)
        )
        events = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        made.append(Landing(ids, peaks, device_ids, device_peaks, *events))
    return made
