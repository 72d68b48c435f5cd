"""A real Postgres and a real Valkey for one test run; loaded by `-p tests.services` in pyproject.toml.

They start before Django reads its settings, and stop with the run. Servers of your own are used instead
when TIDEGATE_DATABASE_URL and TIDEGATE_REDIS_URL are both set. `-p no:tests.services` starts none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import redis

from controlplane.embedded import EmbeddedServices

DATABASE_VARIABLE = "TIDEGATE_DATABASE_URL"
REDIS_VARIABLE = "TIDEGATE_REDIS_URL"
MODEL_VARIABLE = "TIDEGATE_TEST_MODEL"
ROOT = Path(__file__).resolve().parent.parent
DEFAULT_DATA_DIR = ROOT / ".tidegate"
_SERVICES = pytest.StashKey[EmbeddedServices]()


def _start_services() -> EmbeddedServices:
    data_dir = Path(tempfile.mkdtemp(prefix="tidegate-tests-"))
    data_dir.chmod(0o755)  # as root the servers run as `nobody`
    services = EmbeddedServices(data_dir, durable=False).start()
    os.environ[DATABASE_VARIABLE] = services.database_url
    os.environ[REDIS_VARIABLE] = services.redis_url
    os.environ.setdefault("TIDEGATE_SECRET_KEY", "for-tests-only-" + "x" * 40)
    return services


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None]:
    """A wrapper runs before every other plugin's hook: pytest-django reads the settings in the same one."""
    known = early_config.known_args_namespace
    provided = DATABASE_VARIABLE in os.environ and REDIS_VARIABLE in os.environ
    if not provided and not known.help and not known.version:
        early_config.stash[_SERVICES] = _start_services()
        early_config.add_cleanup(lambda: _stop_services(early_config.stash[_SERVICES]))
    return (yield)


def _stop_services(services: EmbeddedServices) -> None:
    services.stop()
    services.remove_data()
    shutil.rmtree(services.data_dir, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests last: synchronous Playwright leaves an event loop running in the main thread."""
    items.sort(key=lambda item: item.get_closest_marker("browser") is not None)


@pytest.fixture(scope="session")
def database_url() -> str:
    """The URL of the server's own database; Django's tests use a database beside it."""
    return os.environ[DATABASE_VARIABLE]


@pytest.fixture
def redis_url() -> Iterator[str]:
    """An empty Valkey, emptied again afterwards."""
    url = os.environ[REDIS_VARIABLE]
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield url
        client.flushall()


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """SmolLM2-135M-Instruct, converted; fetched once into the demo's default data directory.

    TIDEGATE_TEST_MODEL names another copy. A process of its own makes it: torch stays out of this one.
    """
    if MODEL_VARIABLE in os.environ:
        return Path(os.environ[MODEL_VARIABLE])
    command = [
        sys.executable,
        "-m",
        "scheduler_worker.engine.demo_model",
        "--data-dir",
        str(DEFAULT_DATA_DIR),
    ]
    DEFAULT_DATA_DIR.mkdir(exist_ok=True)
    with (DEFAULT_DATA_DIR / ".model.lock").open("a") as lock:  # another test run may make it just now
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    return Path(done.stdout.strip())
