"""The demo's long-running processes: started, watched, started again when they end by themselves, stopped."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .children import Child, ChildStarter
from .errors import EmbeddedServiceError

STOP_TIMEOUT_S = 10.0
MAX_RESTARTS = 5
RESTART_WINDOW_S = 120.0
POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Program:
    """A name for people and the log file, a command, and what its environment has beyond the others'."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    program: Program
    child: Child
    restarts_at: deque[float] = field(default_factory=deque)


class Programs:
    """Runs programs in `cwd` with `env`; their output goes to `log_dir/NAME.log`."""

    def __init__(
        self,
        starter: ChildStarter,
        cwd: Path,
        log_dir: Path,
        env: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._starter = starter
        self._cwd = cwd
        self._log_dir = log_dir
        self._env = dict(env)
        self._say = say
        self._running: dict[str, _Running] = {}
        self._steps: list[Child] = []

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by program name."""
        return {name: one.child.pid for name, one in self._running.items()}

    def set_env(self, **values: str) -> None:
        """Add to the environment of what is started from now on."""
        self._env.update(values)

    def begin_step(self, program: Program) -> Child:
        """Start something that ends by itself; `finish_step` waits for it."""
        child = self._start(program)
        self._steps.append(child)
        return child

    def finish_step(self, child: Child) -> None:
        """Wait for a step. Raises EmbeddedServiceError with the end of its log if it failed."""
        try:
            self._wait_for(child)
        finally:
            child.wait_stopped(0 if child.is_running else STOP_TIMEOUT_S)
            self._steps.remove(child)
        if child.process.returncode:
            raise EmbeddedServiceError(f"{child.name} failed:\n{child.log_tail()}\n(log: {child.log_path})")

    def run_step(self, program: Program) -> None:
        """Run something to its end."""
        self.finish_step(self.begin_step(program))

    def start(self, program: Program) -> None:
        """Start a program that runs until it is stopped."""
        self._running[program.name] = _Running(program, self._start(program))

    def check(self) -> None:
        """Start again what has ended by itself.

        Raises:
            EmbeddedServiceError: a program ended too often in a short time.
        """
        for one in self._running.values():
            if not one.child.is_running:
                self._restart(one)

    def stop_all(self) -> None:
        """Ask all to stop at once, then wait; what does not end is killed."""
        children = [*self._steps, *(one.child for one in self._running.values())]
        for child in children:
            child.request_stop()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in children:
            child.wait_stopped(max(0.0, deadline - time.monotonic()))
        self._running.clear()
        self._steps.clear()

    def _start(self, program: Program) -> Child:
        return self._starter.start(
            program.name,
            program.argv,
            log_path=self._log_dir / f"{program.name}.log",
            cwd=self._cwd,
            env={**self._env, **program.env},
            death_signal=signal.SIGKILL,  # they keep nothing that a gentle stop would save
        )

    def _restart(self, one: _Running) -> None:
        now = time.monotonic()
        code = one.child.process.returncode
        self._starter.forget(one.child.pid)
        while one.restarts_at and one.restarts_at[0] < now - RESTART_WINDOW_S:
            one.restarts_at.popleft()
        if len(one.restarts_at) == MAX_RESTARTS:
            raise EmbeddedServiceError(
                f"{one.program.name} ended {MAX_RESTARTS} times in {RESTART_WINDOW_S:.0f} s, "
                f"last {_ending(code)}:\n{one.child.log_tail()}\n(log: {one.child.log_path})"
            )
        one.restarts_at.append(now)
        self._say(f"{one.program.name} ended {_ending(code)}; starting it again (log: {one.child.log_path})")
        one.child = self._start(one.program)

    def _wait_for(self, child: Child) -> None:
        while child.is_running:
            try:
                child.process.wait(POLL_INTERVAL_S)
            except subprocess.TimeoutExpired:
                continue


def _ending(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by signal {signal.Signals(-code).name}"
