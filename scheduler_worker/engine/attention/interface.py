"""The hook into transformers' public `AttentionInterface`: models call it instead of their own attention.

The backend of the running forward pass is thread-local, so that a process may hold several engines.
"""

from __future__ import annotations

import threading
from typing import Any, Final, Protocol

import torch
from transformers import AttentionInterface

NAME: Final = "tidegate_paged"


class AttentionHook(Protocol):
    """Receives every attention call of a forward pass: `[1, heads, T, dim]` in, `[1, T, heads, dim]` out."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        options: dict[str, Any],
    ) -> torch.Tensor: ...


class _Running(threading.local):
    hook: AttentionHook | None = None


_running = _Running()


class AttentionThrough:
    """Route this thread's attention calls to `hook` while the context lasts."""

    __slots__ = ("_hook", "_previous")

    def __init__(self, hook: AttentionHook) -> None:
        self._hook = hook
        self._previous: AttentionHook | None = None

    def __enter__(self) -> None:
        self._previous, _running.hook = _running.hook, self._hook

    def __exit__(self, *_: object) -> None:
        _running.hook = self._previous


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    hook = _running.hook
    if hook is None:
        raise RuntimeError(f"a model set to {NAME} was called outside its engine")
    return hook(module, query, key, value, scaling, options), None


AttentionInterface.register(NAME, _attention)
