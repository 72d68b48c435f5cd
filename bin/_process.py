"""Runs a step of the set-up: bound to our life, its output in a log, its failure told with the log's end."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
ANSI_STYLE = re.compile(r"\x1b\[[0-9;]*m")
STARTED_AT = time.monotonic()


class StepError(RuntimeError):
    """A step of the set-up failed; the message says what to do."""


def say(line: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED_AT:5.1f}s] {line}", flush=True)


def end_with_parent() -> Callable[[], None] | None:
    """For `preexec_fn`: on Linux the child is signalled when we die."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run_logged(
    name: str,
    command: Sequence[str],
    log_path: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run the command and yield its lines as they come; they are kept in the log too.

    Raises:
        StepError: it did not exit with 0; carries the end of the log.
    """
    process = subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        preexec_fn=end_with_parent(),
    )  # fmt: skip
    tail: list[str] = []
    try:
        with log_path.open("w") as log:
            for coloured in process.stdout or ():
                line = ANSI_STYLE.sub("", coloured)
                if not line.startswith("Progress "):
                    log.write(line)
                    tail = [*tail[-24:], line]
                yield line.rstrip("\n")
    except BaseException:
        process.terminate()
        raise
    if process.wait():
        raise StepError(f"{name} failed (whole log: {log_path}):\n{''.join(tail)}")


def run_quietly(name: str, command: Sequence[str], log_path: Path, **options: object) -> None:
    """Run the command; nothing of its output is shown unless it fails."""
    for _ in run_logged(name, command, log_path, **options):  # type: ignore[arg-type]
        pass
