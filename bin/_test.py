"""Runs every check and test of the project, one step after the other, and ends with a summary.

`bin/test` sets up the checkout and then becomes this process. A failed step does not hide the next one's.
The Python tests run as two processes at once, each with servers of its own: one computes, the other mostly
waits for servers and workers.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parent))

import _chromium
from _process import ANSI_STYLE, StepError, end_with_parent
from _test_options import parser

ROOT = Path(__file__).resolve().parent.parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-rs", "--durations=10")
BESIDE = tuple(
    f"tests/{part}"
    for part in ("bootstrap", "controlplane", "core", "embedded", "engine", "protocol", "sim", "telemetry")
)
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Step:
    """Commands that are one line of the summary; the later ones run even if an earlier one failed.

    `at_once`: they run at the same time, and the output of each is shown after that of the one before.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    cwd: Path = ROOT
    env: Mapping[str, str] = field(default_factory=dict)
    at_once: bool = False


@dataclass
class Outcome:
    name: str
    is_ok: bool
    elapsed_s: float
    num_passed: int = 0
    num_failed: int = 0


class Running:
    """A command under way. Its output is read as it comes, and kept until it is shown."""

    def __init__(self, command: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        self._command = command
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self.process = subprocess.Popen(  # by the main thread: the kernel ends it with the thread that started it
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            preexec_fn=end_with_parent(),
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def show(self, outcome: Outcome) -> None:
        """Show the output up to its end, and count the tests that its closing line tells."""
        words = (Path(part).name if part.startswith("/") else part for part in self._command)
        print(f"$ {' '.join(words)}", flush=True)
        while (line := self._lines.get()) is not None:
            sys.stdout.write(line)
            sys.stdout.flush()
            count_tests(ANSI_STYLE.sub("", line), outcome)
        outcome.is_ok &= self.process.wait() == 0

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line)
        self._lines.put(None)


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    """A command of the environment that this Python belongs to."""
    return (str(Path(sys.executable).parent / name), *arguments)


def steps() -> list[Step]:
    compose = ("--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    npm = [("npm", "run", "--silent", script) for script in ("lint", "typecheck", "test")]
    return [
        Step("lint", (tool("ruff", "check"),)),
        Step("types", (tool("mypy"),)),
        Step("imports", (tool("lint-imports"),)),
        Step("containers", (tool("check-jsonschema", *compose), tool("hadolint", "Dockerfile"))),
        Step("frontend", tuple(npm), ROOT / "frontend", {"NO_COLOR": "1", "CI": "true"}),
        Step("python", python_tests(), at_once=True),
        Step("browser", ((*PYTEST, "-m", "browser"),)),
    ]


def python_tests() -> tuple[tuple[str, ...], ...]:
    """Whatever is not named runs in the first, so that no test is left out."""
    without_browser = (*PYTEST, "-m", "not browser")
    return (*without_browser, *(f"--ignore={path}" for path in BESIDE)), (*without_browser, *BESIDE)


def run_step(step: Step) -> Outcome:
    print(f"\n=== {step.name} " + "=" * (100 - len(step.name)), flush=True)
    started = time.monotonic()
    outcome = Outcome(step.name, is_ok=True, elapsed_s=0.0)
    try:
        env = {**os.environ, **step.env, **(_chromium.ensure(ROOT) if step.name == "browser" else {})}
        for commands in [step.commands] if step.at_once else [(one,) for one in step.commands]:
            run_at_once(commands, step.cwd, env, outcome)
    except StepError as error:
        print(f"error: {error}", flush=True)
        outcome.is_ok = False
    outcome.elapsed_s = time.monotonic() - started
    return outcome


def run_at_once(
    commands: tuple[tuple[str, ...], ...], cwd: Path, env: Mapping[str, str], outcome: Outcome
) -> None:
    """Run the commands beside each other; none outlives an interruption."""
    running: list[Running] = []
    try:
        for command in commands:
            running.append(Running(command, cwd, env))
        for one in running:
            one.show(outcome)
    except BaseException:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait(STOP_TIMEOUT_S)
        raise


def count_tests(line: str, outcome: Outcome) -> None:
    """Understands pytest's last line (`1 failed, 2 passed in 3.4s`) and vitest's (`Tests  2 passed (2)`)."""
    if not re.search(r"^(=* ?(\d+ \w+, )*\d+ \w+ in [\d.]+s|\s+Tests  )", line):
        return
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", line)}
    outcome.num_passed += counts.get("passed", 0)
    outcome.num_failed += sum(number for word, number in counts.items() if word != "passed")


def summarize(outcomes: list[Outcome]) -> int:
    """Print the table and the closing line; returns the exit code."""
    print("\n=== summary " + "=" * 93)
    for one in outcomes:
        tests = f"{one.num_passed} passed, {one.num_failed} failed" if one.num_passed + one.num_failed else ""
        print(f"{'ok    ' if one.is_ok else 'FAILED'}  {one.name:<12} {one.elapsed_s:7.1f} s  {tests}")
    num_failed_steps = sum(not one.is_ok for one in outcomes)
    print(f"{len(outcomes)} steps, {num_failed_steps} failed, {sum(one.elapsed_s for one in outcomes):.0f} s")
    num_passed = sum(one.num_passed for one in outcomes)
    num_failed = sum(one.num_failed for one in outcomes)
    print(f"{num_passed} passed, {num_failed} failed")
    return 1 if num_failed_steps else 0


def main() -> None:
    only = parser().parse_args().only
    chosen = [step for step in steps() if not only or step.name in only]
    sys.exit(summarize([run_step(step) for step in chosen]))


if __name__ == "__main__":
    main()
