"""Attention that a CUDA graph can hold: the interface, and what its implementations share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch

from scheduler_worker.engine.attention.base import AttentionBatch
from scheduler_worker.engine.mapped import mapped, move


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What one graph holds: `num_decode_rows` rows of one token, then `num_chunk_tokens` tokens of at most
    `num_chunks` chunks."""

    num_decode_rows: int
    num_chunks: int = 0
    num_chunk_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.num_decode_rows + self.num_chunk_tokens


class PinnedMirror:
    """An array on the host and its copy on the device, of the same fixed addresses in every step."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._host, self._source = mapped(size, dtype, device)
        self.host: npt.NDArray[Any] = self._host.numpy()
        self.device = torch.zeros(size, dtype=dtype, device=device)

    def upload(self, size: int) -> None:
        """Send the first `size` elements; the host's copy must stay as it is until the stream got there."""
        if size == len(self._host):
            move(self._source, self.device)
        else:
            move(self._source[:size], self.device[:size])


class CapturableAttention(Protocol):
    """The attention of one graph: `attend` is captured, `stage` fills what it reads before each replay."""

    def stage(self, batch: AttentionBatch) -> None:
        """Describe a step's rows, at most as many as the graph's shape has."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `AttentionBackend.attend`. Tokens are written to the places given when this was made."""


MakeCapturable = Callable[[GraphShape, torch.Tensor], CapturableAttention]
"""The attention for one shape; the tensor `[T]` on the device says where each token's key and value go."""
