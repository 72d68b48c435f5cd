"""The interface of attention backends, and what one step's attention needs to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from scheduler_worker.engine.attention.capturable import GraphShape, MakeCapturable

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
TableArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """How one layer attends. `window` is the number of latest tokens that a query sees, itself included."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scaling: float
    window: int | None = None
    softcap: float | None = None


@dataclass(slots=True)
class AttentionBatch:
    """One step's packed rows: one-token rows first, ordered by context length, then longer chunks.

    Row `i` holds the tokens `offsets[i]` to `offsets[i + 1] - 1` of the packed input; it starts at position
    `starts[i]` and has `lengths[i]` tokens of context once they are written. `block_tables[slots[i]]` maps
    its blocks. `write_index` `[T]`, on the device in time for the forward pass, is where each token's key
    and value go. All other arrays are on the host. `is_next`: the rows are those of the batch planned last, one
    token further; those in `begun` begin a block that they did not have then.
    """

    num_decode_rows: int
    slots: IntArray
    starts: IntArray
    lengths: IntArray
    offsets: IntArray
    block_tables: TableArray
    write_index: torch.Tensor
    is_next: bool = False
    begun: Sequence[int] = ()

    @property
    def num_rows(self) -> int:
        return len(self.slots)


class AttentionBackend(Protocol):
    """Computes attention over the paged cache. One instance serves one executor."""

    name: str

    def prepare(self) -> None:
        """Compile what attention needs; may run in a thread of its own before anything else is asked."""

    def capturable(self, largest: GraphShape, num_columns: int) -> MakeCapturable | None:
        """The same attention for CUDA graphs of up to `largest` rows and tokens, with block tables of
        `num_columns` blocks; None if there is none."""

    def plan(self, batch: AttentionBatch) -> None:
        """Prepare a step; called once before its forward pass."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Write the new keys and values and attend.

        query `[T, heads, key_dim]`, key and value `[T, kv_heads, dim]`; returns `[T, heads, value_dim]`.
        """


def to_device(values: IntArray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; on the CPU the same memory."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
