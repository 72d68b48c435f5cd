"""The engine: any Hugging Face decoder on a paged KV cache, driven by step plans. Knows no policy."""

from __future__ import annotations

from scheduler_worker.engine.errors import CheckpointDamaged, EngineError, ModelNotSupported, SettingsError
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import load_model
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.executor import Executor

__all__ = [
    "CheckpointDamaged",
    "EngineError",
    "EngineSettings",
    "ModelNotSupported",
    "SettingsError",
    "load_executor",
]


def load_executor(settings: EngineSettings) -> Executor:
    """Load the model, size its KV cache and make it ready; raises an `EngineError` that says what to mend."""
    return TorchExecutor(load_model(settings), settings)
