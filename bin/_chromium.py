"""Finds a Chromium for the browser tests: the installed one, else apt's, else Playwright's own download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from _process import StepError, run_quietly, say

VARIABLE = "TIDEGATE_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MAC_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


def ensure(root: Path) -> dict[str, str]:
    """The environment that tells the tests which browser to drive; installs one if there is none.

    Raises:
        StepError: there is none and none could be installed; names the command to run.
    """
    node = shutil.which("node")
    env = {"PLAYWRIGHT_NODEJS_PATH": node} if node else {}  # Playwright's own Node wants libatomic
    found = os.environ.get(VARIABLE) or _first(_installed, _from_playwright)
    if not found:
        found = _install(root / ".venv", env)
    return {**env, VARIABLE: found}


def _first(*finders: Callable[[], str | None]) -> str | None:
    return next((path for find in finders if (path := find())), None)


def _installed() -> str | None:
    candidates = [shutil.which(name) for name in NAMES] + [app for app in MAC_APPS if Path(app).exists()]
    return next((path for path in candidates if path and _starts(path)), None)


def _starts(path: str) -> bool:
    """Ubuntu has a `chromium-browser` that only says that it is a snap."""
    done = subprocess.run([path, "--version"], capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def _from_playwright() -> str | None:
    code = (
        "from playwright.sync_api import sync_playwright as start\n"
        "with start() as playwright: print(playwright.chromium.executable_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    path = done.stdout.strip()
    return path if done.returncode == 0 and Path(path).exists() else None


def _install(log_dir: Path, env: dict[str, str]) -> str:
    attempts = [lambda: _install_by_playwright(log_dir, env)]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        attempts.insert(0, lambda: _install_by_apt(log_dir))
    for attempt in attempts:
        try:
            attempt()
        except StepError as error:
            say(str(error).splitlines()[0])
        if found := _first(_installed, _from_playwright):
            return found
    raise StepError(
        "the browser tests need a Chromium and none could be installed. Run one of\n"
        "  apt-get install chromium                       (Debian, as root)\n"
        "  .venv/bin/python -m playwright install chromium\n"
        f"or set {VARIABLE} to the path of one."
    )


def _install_by_apt(log_dir: Path) -> None:
    say("installing Chromium by apt")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run_quietly("apt-get update", ["apt-get", "update", "-q"], log_dir / "apt-update.log", env=env)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"]
    run_quietly("apt-get install chromium", command, log_dir / "apt-install.log", env=env)


def _install_by_playwright(log_dir: Path, env: dict[str, str]) -> None:
    say("downloading Playwright's Chromium")
    command = [sys.executable, "-m", "playwright", "install", "chromium"]
    run_quietly("playwright install chromium", command, log_dir / "playwright.log", env=env)
