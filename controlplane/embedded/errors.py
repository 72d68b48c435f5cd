"""What can go wrong with the embedded services; every message says what to do."""

from __future__ import annotations

from pathlib import Path


class EmbeddedServiceError(RuntimeError):
    """An embedded service could not be found, started or stopped."""


class DataDirInUseError(EmbeddedServiceError):
    """Another process supervises services on this data directory."""

    def __init__(self, data_dir: Path, holder_pid: int | None) -> None:
        holder = f" by process {holder_pid}" if holder_pid else ""
        super().__init__(
            f"the data directory {data_dir} is in use{holder}. "
            "Stop that process first, or choose another directory with --data-dir."
        )
