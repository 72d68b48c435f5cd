"""The forward pass: packed tokens in, one row of logits per packed row out."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import AttentionBackend, AttentionBatch
from scheduler_worker.engine.attention.interface import AttentionThrough


class ModelRunner:
    """Runs an unmodified model eagerly over an attention backend."""

    def __init__(self, model: PreTrainedModel, backend: AttentionBackend) -> None:
        self._model = model
        self._backend = backend
        self._attention = AttentionThrough(self._attend)
        self.forward_s = 0.0

    def plan(self, batch: AttentionBatch) -> None:
        """Prepare the attention of the next `forward`."""
        self._backend.plan(batch)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, last_tokens: torch.Tensor
    ) -> torch.Tensor:
        """`[rows, vocab]` logits at `last_tokens` `[rows]` of the packed `[1, T]` input.

        `forward_s` is then the host's time inside the model, which on a CPU is the computation itself.
        """
        with self._attention:
            started = time.perf_counter()
            output = self._model(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=last_tokens
            )
            self.forward_s = time.perf_counter() - started
        logits: torch.Tensor = output.logits[0]
        return logits

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        out = self._backend.attend(
            module.layer_idx, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1)
        )
        return out[None]
