"""The demo's processes: watched, restarted, stopped."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from controlplane.embedded.children import ChildStarter
from controlplane.embedded.errors import EmbeddedServiceError
from controlplane.embedded.programs import MAX_RESTARTS, Program, Programs

TIMEOUT_S = 20.0
SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def programs(tmp_path: Path, said: list[str]) -> Iterator[Programs]:
    running = Programs(ChildStarter(), tmp_path, tmp_path, dict(os.environ), said.append)
    yield running
    running.stop_all()


def wait_gone(pid: int) -> None:
    """Until the process has ended; its parent has not asked for its exit code yet."""
    deadline = time.monotonic() + TIMEOUT_S
    while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def python(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-c", code))


def test_a_program_that_was_killed_is_started_again(programs: Programs, said: list[str]) -> None:
    programs.start(Program("worker", SLEEP))
    first = programs.pids["worker"]
    os.kill(first, signal.SIGKILL)
    wait_gone(first)
    programs.check()
    assert programs.pids["worker"] != first
    assert said[0].startswith("worker ended by signal SIGKILL; starting it again")


def test_a_program_that_keeps_ending_stops_the_demo_with_its_log(programs: Programs) -> None:
    programs.start(python("web", "print('no port for me'); raise SystemExit(3)"))
    with pytest.raises(EmbeddedServiceError, match=r"web ended 5 times .* exit code 3:\nno port for me"):
        for _ in range(MAX_RESTARTS + 1):
            wait_gone(programs.pids["web"])
            programs.check()


def test_a_failed_step_is_told_with_the_end_of_its_log(programs: Programs) -> None:
    with pytest.raises(EmbeddedServiceError, match=r"migrate failed:\nno such table"):
        programs.run_step(python("migrate", "print('no such table'); raise SystemExit(1)"))


def test_a_step_sees_the_environment_set_before_it(programs: Programs, tmp_path: Path) -> None:
    programs.set_env(TIDEGATE_POOL="tide")
    programs.run_step(python("step", "import os; print(os.environ['TIDEGATE_POOL'])"))
    assert (tmp_path / "step.log").read_text() == "tide\n"


def test_stopping_ends_steps_and_programs_alike(programs: Programs) -> None:
    programs.start(Program("worker", SLEEP))
    step = programs.begin_step(Program("model", SLEEP))
    pids = [step.pid, programs.pids["worker"]]
    programs.stop_all()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_program_deaf_to_the_stop_signal_is_killed(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.embedded.programs.STOP_TIMEOUT_S", 0.3)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    programs.start(python("deaf", code + "; time.sleep(600)"))
    pid = programs.pids["deaf"]
    deadline = time.monotonic() + TIMEOUT_S
    while "deaf" not in (tmp_path / "deaf.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    programs.stop_all()
    assert not psutil.pid_exists(pid)
