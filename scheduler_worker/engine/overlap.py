"""Kernels that begin while the one before them ends (programmatic dependent launch; Hopper and later).

Such a kernel waits, before it touches memory, until the one before it is over. What it saves is the launch: its
thread blocks are in place by then. It lets the next one begin only after it has waited itself: a compiled kernel may
read at once what was written two kernels before it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import torch

_FIRST_CAPABILITY: Final = (9, 0)


@cache
def overlaps(device: torch.device) -> bool:
    """Whether the device can begin a kernel early."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def launch_options(device: torch.device) -> dict[str, Any]:
    """How one of our kernels is launched there: they take `overlap` and, where it is set, wait by themselves."""
    return {"overlap": True, "launch_pdl": True} if overlaps(device) else {"overlap": False}
