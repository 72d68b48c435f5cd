"""Child processes that never outlive their supervisor, however it ends.

On Linux the kernel signals each child when the supervising *thread* dies (PR_SET_PDEATHSIG), so start
children from a thread that lives as long as they should. Elsewhere a watcher process does it on a pipe's
end-of-file.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .account import Account

PR_SET_PDEATHSIG = 1
WATCHER = Path(__file__).with_name("watcher.py")


def _bind_to_parent(death_signal: int) -> Callable[[], None]:
    """What the child runs between fork and exec; it must neither import nor take a lock."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent_pid = os.getpid()

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent_pid:  # the parent died before prctl took effect
            os._exit(1)

    return bind


@dataclass
class Watcher:
    """One helper process that stops the children of a supervisor that was killed."""

    process: subprocess.Popen[str] | None = None

    def add(self, pid: int, stop_signal: int) -> None:
        self._write(f"+ {pid} {int(stop_signal)}\n")

    def forget(self, pid: int) -> None:
        self._write(f"- {pid}\n")

    def close(self) -> None:
        """End the helper; it stops whatever was not forgotten."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()

    def _write(self, line: str) -> None:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-S", str(WATCHER)], stdin=subprocess.PIPE, text=True, process_group=0
            )
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()


@dataclass
class ChildStarter:
    """Starts children bound to this process. `use_watcher` is for platforms without a parent-death signal."""

    use_watcher: bool = field(default_factory=lambda: not sys.platform.startswith("linux"))
    _watcher: Watcher = field(default_factory=Watcher)

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log_path: Path,
        cwd: Path,
        env: Mapping[str, str],
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals | None = None,
        account: Account | None = None,
    ) -> Child:
        """Start a child. `death_signal` is sent when this process dies; the stop signal by default."""
        death_signal = death_signal or stop_signal
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                process_group=0,  # a Ctrl-C in the terminal goes to the supervisor alone
                preexec_fn=None if self.use_watcher else _bind_to_parent(death_signal),
                **(account.popen_arguments() if account else {}),
            )
        if self.use_watcher:
            self._watcher.add(process.pid, death_signal)
        return Child(name, process, stop_signal, log_path, self)

    def forget(self, pid: int) -> None:
        if self.use_watcher:
            self._watcher.forget(pid)

    def close(self) -> None:
        self._watcher.close()


@dataclass
class Child:
    """A running child, the signal that stops it gently, and its log."""

    name: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    log_path: Path
    starter: ChildStarter

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def request_stop(self) -> None:
        if self.is_running:
            self.process.send_signal(self.stop_signal)

    def wait_stopped(self, timeout_s: float) -> None:
        """Wait for the end that was requested; past the timeout kill it."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.starter.forget(self.pid)

    def log_tail(self, num_lines: int = 15) -> str:
        """The last lines of its log, for an error message."""
        if not self.log_path.exists():
            return ""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-num_lines:])
