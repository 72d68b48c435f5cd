"""What a data directory remembers between starts: ports, passwords, and the processes of the last start."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import psutil

from .errors import DataDirInUseError

STATE_NAME = "embedded.json"
LOCK_NAME = "embedded.lock"
LEFTOVER_GRACE_S = 10.0


@dataclass
class ServiceState:
    """Remembered so that a restart has the same URLs. The file holds passwords: mode 0600."""

    instance_id: str = field(default_factory=lambda: secrets.token_hex(8))
    postgres_port: int = 0
    valkey_port: int = 0
    postgres_password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    valkey_password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    processes: dict[str, list[float]] = field(default_factory=dict)
    """name → [pid, creation time]: a pid alone may be somebody else's by now."""

    @classmethod
    def load(cls, data_dir: Path) -> ServiceState:
        path = data_dir / STATE_NAME
        return cls(**json.loads(path.read_text())) if path.exists() else cls()

    def save(self, data_dir: Path) -> None:
        write_private(data_dir / STATE_NAME, json.dumps(asdict(self), indent=1))

    def record_process(self, name: str, pid: int) -> None:
        self.processes[name] = [pid, psutil.Process(pid).create_time()]

    def stop_leftovers(self) -> None:
        """Wait for the servers of a supervisor that was killed a moment ago; kill those that do not end."""
        leftovers = [process for record in self.processes.values() if (process := _same_process(*record))]
        for process in leftovers:
            process.terminate()
        _, alive = psutil.wait_procs(leftovers, timeout=LEFTOVER_GRACE_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=LEFTOVER_GRACE_S)
        self.processes.clear()


def _same_process(pid: float, created_at: float) -> psutil.Process | None:
    try:
        process = psutil.Process(int(pid))
        return process if abs(process.create_time() - created_at) < 1.0 else None
    except psutil.NoSuchProcess:
        return None


def write_private(path: Path, text: str) -> None:
    """Replace the file in one move; nobody else can read it at any moment."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def lock_data_dir(data_dir: Path) -> IO[str]:
    """Take the directory for this process, until the returned file is closed or the process ends.

    Raises:
        DataDirInUseError: another process holds it.
    """
    file = (data_dir / LOCK_NAME).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise DataDirInUseError(data_dir, int(holder) if holder.isdigit() else None) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def usable_port(remembered: int) -> int:
    """The remembered port if it is free, else one that the system picks."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", remembered))
        except OSError:
            return usable_port(0)
        return int(probe.getsockname()[1])
