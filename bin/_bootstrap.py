"""Makes a checkout runnable on a machine that has Python >= 3.11 and nothing else, then runs it.

Standard library only: it runs before anything is installed. Each step is skipped when its stamp says that
it was done with the same inputs, so a second start costs milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import signal
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

BIN = Path(__file__).resolve().parent
ROOT = BIN.parent
VENV = ROOT / ".venv"
sys.path.insert(0, str(BIN))

import _frontend  # noqa: E402
import _packages  # noqa: E402
from _process import STARTED_AT, StepError, say  # noqa: E402


def load_options(command: str) -> ModuleType:
    """The command's argument parser, read from its file: its package cannot be imported yet."""
    path = {"demo": ROOT / "controlplane/embedded/demo_options.py", "test": BIN / "_test_options.py"}[command]
    spec = importlib.util.spec_from_file_location(f"{command}_options", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def setup_lock() -> Iterator[None]:
    """One set-up of this checkout at a time; a second one waits."""
    VENV.mkdir(exist_ok=True)
    with (VENV / ".setup.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up of this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def requirements(extras: list[str]) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def inputs_digest(*texts: str) -> str:
    return hashlib.sha256(
        "\0".join([*texts, platform.python_version(), platform.machine()]).encode()
    ).hexdigest()


def stop_on_signal(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def set_up(extras: list[str], torch_index: str | None) -> Path:
    """Everything that a command needs; returns the environment's Python."""
    with setup_lock():
        wanted = requirements(extras)
        digest = inputs_digest((ROOT / "constraints.txt").read_text(), *wanted)
        python = _packages.ensure_installed(VENV, ROOT / "constraints.txt", wanted, digest, torch_index)
        _frontend.ensure_built(ROOT / "frontend", VENV, python)
    return python


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop_on_signal)  # a script's `&` starts us with SIGINT ignored
    command, *arguments = sys.argv[1:]
    options = load_options(command).parser().parse_args(arguments)
    try:
        python = set_up(["dev"] if command == "test" else [], options.torch_index)
    except StepError as error:
        sys.exit(f"error: {error}")
    target = ["-m", "controlplane.embedded.demo"] if command == "demo" else [str(BIN / "_test.py")]
    os.chdir(ROOT)
    os.environ.update(_frontend.node_environment(VENV))
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["TIDEGATE_SETUP_S"] = f"{time.monotonic() - STARTED_AT:.2f}"
    sys.stdout.flush()
    os.execv(python, [str(python), *target, *arguments])


if __name__ == "__main__":
    main()
