"""A demo started as a user would, watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT_S = 330.0  # measuring the model takes minutes where other programs want the cores
STOP_TIMEOUT_S = 40.0


@dataclass
class RunningDemo:
    """`process` is bin/demo itself; its output is in `output`."""

    process: psutil.Process
    data_dir: Path
    output: Path

    @property
    def info(self) -> dict[str, Any]:
        """demo.json."""
        return dict(json.loads((self.data_dir / "demo.json").read_text()))

    def logs(self, num_lines: int = 40) -> str:
        """The end of each process's log."""
        paths = sorted((self.data_dir / "logs").glob("*.log"))
        tails = [path.read_text(errors="replace").splitlines()[-num_lines:] for path in paths]
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(tail) for path, tail in zip(paths, tails, strict=True)
        )

    def family(self) -> list[psutil.Process]:
        """The demo and everything below it."""
        return [self.process, *self.process.children(recursive=True)]

    def end(self, signum: signal.Signals) -> list[psutil.Process]:
        """Send the signal and wait; returns what is left of the family."""
        family = self.family()
        self.process.send_signal(signum)
        return psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)[1]


def command(data_dir: Path, model: Path, *arguments: str) -> list[str]:
    return [str(ROOT / "bin" / "demo"), "--data-dir", str(data_dir), "--model", str(model), *arguments]


def environment() -> dict[str, str]:
    """A user's: none of the test run's settings."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("TIDEGATE_", "DJANGO_"))
    }


def start_demo(data_dir: Path, model: Path, *arguments: str) -> RunningDemo:
    """Start bin/demo and wait until it says that it runs."""
    output = data_dir.with_suffix(".out")
    with output.open("wb") as file:
        process = subprocess.Popen(
            command(data_dir, model, *arguments), stdout=file, stderr=file, env=environment()
        )
    demo = RunningDemo(psutil.Process(process.pid), data_dir, output)
    wait_running(demo)
    return demo


def start_demo_in_background(data_dir: Path, model: Path, *arguments: str) -> RunningDemo:
    """The same from a script with `&`: the shell starts such a command with SIGINT ignored."""
    output = data_dir.with_suffix(".out")
    script = '"$@" >"$OUTPUT" 2>&1 & echo $!'
    started = subprocess.run(
        ["sh", "-c", script, "sh", *command(data_dir, model, *arguments)],
        env={**environment(), "OUTPUT": str(output)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    demo = RunningDemo(psutil.Process(int(started.stdout)), data_dir, output)
    wait_running(demo)
    return demo


def wait_running(demo: RunningDemo) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while "Tidegate is running." not in demo.output.read_text():
        ended = not demo.process.is_running() or demo.process.status() == psutil.STATUS_ZOMBIE
        if ended or time.monotonic() > deadline:
            raise AssertionError(f"the demo does not run:\n{demo.output.read_text()}")
        time.sleep(0.1)


def stream_text(info: dict[str, Any], class_id: str, question: str) -> str:
    """What a streaming client receives, its chunks joined."""
    body = {
        "model": info["model"],
        "stream": True,
        "temperature": 0,
        "max_tokens": 16,
        "messages": [{"role": "user", "content": question}],
    }
    headers = {"Authorization": f"Bearer {info['api_keys'][class_id]}"}
    url = f"{info['url']}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        received = list(response.iter_lines())
    lines = [line.removeprefix("data: ") for line in received if line.startswith("data: ")]  # not comments
    assert lines[-1:] == ["[DONE]"], received
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
