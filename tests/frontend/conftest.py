"""The built pages in front of the mock backend, in a real Chromium."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.e2e import ui_pages as ui


@dataclass(frozen=True)
class Mock:
    """The mock backend: `url` serves the pages, `play` changes what they are told."""

    url: str

    def play(self, scenario: str) -> None:
        with urllib.request.urlopen(f"{self.url}/mock/{scenario}", timeout=10) as answer:
            answer.read()


class Backends:
    """Starts mock backends, each one ahead of its need: a test does not wait for Node."""

    def __init__(self) -> None:
        self._next = _start()

    def take(self) -> subprocess.Popen[str]:
        """One that nobody has used."""
        taken, self._next = self._next, _start()
        return taken

    def end(self) -> None:
        _end(self._next)


def _start() -> subprocess.Popen[str]:
    vite = ui.FRONTEND / "node_modules" / "vite" / "bin" / "vite.js"
    command = ["node", str(vite), "preview", "--mode", "mock", "--host", "127.0.0.1", "--port", "0"]
    return subprocess.Popen(
        command, cwd=ui.FRONTEND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(20)


@pytest.fixture(scope="session")
def backends() -> Iterator[Backends]:
    started = Backends()
    yield started
    started.end()


@pytest.fixture
def mock(backends: Backends) -> Iterator[Mock]:
    """A backend per test, so that what one test publishes is not the next one's start."""
    process = backends.take()
    try:
        yield Mock(_address(process))
    finally:
        _end(process)


def _address(process: subprocess.Popen[str]) -> str:
    """Read the server's output until it names its address; its end is the only other way out."""
    said: list[str] = []
    for line in process.stdout or ():
        said.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise RuntimeError(f"the mock backend did not start:\n{''.join(said)}")


@pytest.fixture
def open_live(browser: Browser, mock: Mock) -> Iterator[Callable[..., Page]]:
    """Open a page of the application on the mock backend, with live numbers on it."""

    def open_at(path: str = "/live", *, scenario: str = "broken", **options: Any) -> Page:
        mock.play(scenario)
        page = ui.open_page(browser, **options)
        page.goto(f"{mock.url}{path}")
        ui.wait_until_live(page)
        return page

    yield open_at
    for context in browser.contexts:  # a page left open goes on drawing, and slows the next test down
        context.close()
