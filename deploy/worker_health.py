"""Exit 0 while this container's worker holds its lease, which only a loop that makes progress renews."""

from __future__ import annotations

import os
import socket
import sys

import redis

from scheduler_worker.protocol import keys
from scheduler_worker.worker.settings import read


def main() -> int:
    settings = read(os.environ)
    worker = (
        os.environ.get("TIDEGATE_WORKER_ID") or f"{socket.gethostname().lower()[:40]}-1"
    )  # the worker is process 1
    client = redis.Redis.from_url(settings.redis_url, socket_timeout=3, socket_connect_timeout=3)
    ends_at = client.zscore(keys.WORKER_LEASES.of(settings.pool), worker)
    return 0 if ends_at is not None and ends_at > client.time()[0] else 1


if __name__ == "__main__":
    sys.exit(main())
