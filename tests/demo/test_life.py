"""The demo's life: it serves, it keeps what it was told, and it leaves no process behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.demo.running import (
    RunningDemo,
    command,
    environment,
    start_demo,
    start_demo_in_background,
    stream_text,
)

pytestmark = [pytest.mark.model, pytest.mark.timeout(400)]
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """One data directory for all tests: the first start measures and seeds, the others find it done.

    It lies under a folder of mode 0700, as a clone in a home does.
    """
    folder = Path(tempfile.mkdtemp(prefix="tidegate-demo-"))
    yield folder / "data"
    note = folder / "data" / "DATA_IS_ELSEWHERE.txt"
    if note.exists():
        shutil.rmtree(note.read_text().split()[-1])
    shutil.rmtree(folder)


@pytest.fixture(scope="class")
def demo(data_dir: Path, demo_model_dir: Path) -> Iterator[RunningDemo]:
    running = start_demo(data_dir, demo_model_dir, "--no-load")
    yield running
    running.end(signal.SIGTERM)
    print(running.logs())  # shown by pytest when the last test failed


class TestWhileItRuns:
    """One demo for all of these."""

    def test_it_streams_a_real_answer_and_is_ready(self, demo: RunningDemo) -> None:
        assert httpx.get(f"{demo.info['url']}/readyz").status_code == 200
        assert stream_text(demo.info, "high", QUESTION) == ANSWER

    def test_a_second_start_on_its_data_is_refused_and_disturbs_nothing(
        self, demo: RunningDemo, demo_model_dir: Path
    ) -> None:
        arguments = command(demo.data_dir, demo_model_dir)
        second = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert f"is in use by process {demo.process.pid}" in second.stderr
        assert stream_text(demo.info, "low", QUESTION) == ANSWER

    def test_a_killed_worker_is_replaced_and_serves(self, demo: RunningDemo) -> None:
        worker = next(one for one in demo.family() if "scheduler_worker.worker" in one.cmdline())
        worker.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while "starting it again" not in demo.output.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while httpx.get(f"{demo.info['url']}/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert stream_text(demo.info, "medium", QUESTION) == ANSWER


def test_a_restart_keeps_credentials_and_policy(data_dir: Path, demo_model_dir: Path) -> None:
    first = start_demo(data_dir, demo_model_dir, "--no-load")
    before = first.info
    first.end(signal.SIGTERM)
    second = start_demo(data_dir, demo_model_dir, "--no-load")
    after = second.info
    try:
        assert {name: after[name] for name in ("username", "password", "api_keys")} == {
            name: before[name] for name in ("username", "password", "api_keys")
        }
        assert "measuring" not in second.output.read_text()
    finally:
        second.end(signal.SIGTERM)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_process_outlives_it(data_dir: Path, demo_model_dir: Path, signum: signal.Signals) -> None:
    demo = start_demo_in_background(data_dir, demo_model_dir)
    assert len(demo.family()) >= 8  # itself, Postgres, Valkey, worker, web, Celery, beat, load
    assert demo.end(signum) == []


def test_a_kill_during_the_start_leaves_no_process(data_dir: Path, demo_model_dir: Path) -> None:
    process = subprocess.Popen(
        command(data_dir, demo_model_dir),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    demo = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(family := [demo, *demo.children(recursive=True)]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert psutil.wait_procs(family, timeout=30)[1] == []
