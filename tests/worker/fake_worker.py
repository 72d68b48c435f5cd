"""A whole worker process around `FakeExecutor`: `python -m tests.worker.fake_worker`.

FAKE_EXECUTOR holds the executor's fields as JSON.
"""

from __future__ import annotations

import json
import logging
import os

from scheduler_worker.executor import Executor
from scheduler_worker.worker import settings
from scheduler_worker.worker.main import run
from scheduler_worker.worker.settings import WorkerSettings
from tests.worker.fake_executor import FakeExecutor


def load(_: WorkerSettings) -> Executor:
    return FakeExecutor(**json.loads(os.environ.get("FAKE_EXECUTOR", "{}")))


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    raise SystemExit(run(settings.read(os.environ), load))
