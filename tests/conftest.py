"""What several parts' tests share beyond the servers of `tests/services.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e import ui_pages as ui


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for the whole run: a process can start synchronous Playwright only once at a time."""
    with ui.chromium() as started:
        yield started
