"""What several parts' tests share beyond the servers of `tests/services.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.test import override_settings
from playwright.sync_api import Browser

from tests.e2e import ui_pages as ui

QUICK_HASHER = "django.contrib.auth.hashers.MD5PasswordHasher"


@pytest.fixture(scope="session", autouse=True)
def _quick_passwords() -> Iterator[None]:
    """The installation's hasher takes a fifth of a second for each look at a password: guessing must be slow."""
    with override_settings(PASSWORD_HASHERS=[QUICK_HASHER]):
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for the whole run: a process can start synchronous Playwright only once at a time."""
    with ui.chromium() as started:
        yield started
