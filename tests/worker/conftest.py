from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.fleet import Fleet


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Worker processes that end with the test; their logs are printed when it fails."""
    made = Fleet(redis_url, tmp_path)
    yield made
    made.end()
    print(made.logs())
