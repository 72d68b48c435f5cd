"""What can go wrong in the engine. Errors of one request never appear here: they fail their own row."""

from __future__ import annotations


class EngineError(RuntimeError):
    """Base of the engine's errors. Not worth a retry."""


class SettingsError(EngineError):
    """A setting that cannot be obeyed; says which, and what would do."""


class ModelNotSupported(EngineError):
    """The model cannot run on a paged KV cache; says why."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model} is not supported: {reason}")
        self.model = model
        self.reason = reason


class CheckpointDamaged(EngineError):
    """A KV checkpoint that is missing, of another model, or does not match its digest."""
