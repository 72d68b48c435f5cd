"""The whole system as `bin/demo` starts it, a browser in front of it, clients and an operator beside it."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.demo.running import RunningDemo, start_demo
from tests.e2e import ui_pages as ui
from tests.e2e.clients import Clients
from tests.e2e.operators import Operator


@pytest.fixture(scope="package")
def system(demo_model_dir: Path) -> Iterator[RunningDemo]:
    """Postgres, Valkey, worker with the real model, web, Celery; no load but the tests'. One for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="tidegate-e2e-"))
    folder.chmod(0o755)  # as root the servers run as `nobody`
    demo = start_demo(folder / "data", demo_model_dir, "--no-load")
    try:
        yield demo
        print(demo.logs())  # shown by pytest when a test failed
    finally:
        left = demo.end(signal.SIGTERM)
        shutil.rmtree(folder)
    assert left == []


@pytest.fixture(scope="package")
def clients(system: RunningDemo) -> Iterator[Clients]:
    started = Clients(system.info)
    yield started
    started.close()


@pytest.fixture(scope="package")
def operator(system: RunningDemo) -> Iterator[Operator]:
    signed_in = Operator(system.info)
    yield signed_in
    signed_in.close()


@pytest.fixture
def open_page(browser: Browser, system: RunningDemo, operator: Operator) -> Iterator[Callable[..., Page]]:
    """Open a path as the signed-in operator. The page must not have failed by the end of the test."""
    pages: list[Page] = []
    failures: list[str] = []

    def open_at(path: str = "/live", **options: Any) -> Page:
        page = ui.open_page(browser, **options)
        pages.append(page)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.context.add_cookies(operator.cookies())
        page.goto(f"{system.info['url']}{path}")
        ui.wait_until_live(page)
        return page

    yield open_at
    for page in pages:
        page.context.close()
    assert failures == []
