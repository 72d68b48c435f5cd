"""One real Valkey on a data folder, append-only: what was queued survives a restart."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from .account import Account
from .children import Child, ChildStarter
from .errors import EmbeddedServiceError
from .state import write_private

START_TIMEOUT_S = 60.0
CHILD_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def num_io_threads(num_cpus: int) -> int:
    """Threads that read and write sockets: one where the machine's few cores have other work."""
    return max(1, min(4, num_cpus // 4))


@dataclass(frozen=True)
class Valkey:
    """Where this Valkey lives and how it is reached."""

    server: Path
    home: Path
    log_path: Path
    port: int
    password: str
    account: Account | None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def config_path(self) -> Path:
        return self.home / "valkey.conf"

    def write_config(self) -> None:
        """The password stands in a private file: a command line is readable by everyone."""
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": f'"{self.home}"',
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": "everysec",
            # Each rewriting begins with a fork that holds everybody up, 4 to 20 ms; 64 MB are written in seconds.
            "auto-aof-rewrite-min-size": "256mb",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "io-threads": num_io_threads(os.cpu_count() or 1),
        }
        write_private(self.config_path, "".join(f"{name} {value}\n" for name, value in settings.items()))
        if self.account:
            self.account.own(self.config_path)

    def start(self, starter: ChildStarter) -> Child:
        """Start the server and wait until it has loaded its data."""
        self.write_config()
        child = starter.start(
            "valkey", [str(self.server), str(self.config_path)], log_path=self.log_path, cwd=self.home,
            env=CHILD_ENV, account=self.account,
        )  # fmt: skip
        try:
            self._wait_ready(child)
        except BaseException:
            child.request_stop()
            child.wait_stopped(START_TIMEOUT_S)
            raise
        return child

    def _wait_ready(self, child: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            while True:
                try:
                    client.ping()
                    return
                except (
                    redis.ConnectionError,
                    redis.TimeoutError,
                ) as error:  # BusyLoading is a ConnectionError
                    if not child.is_running:
                        raise EmbeddedServiceError(f"Valkey ended at once:\n{child.log_tail()}") from error
                    if time.monotonic() > deadline:
                        raise EmbeddedServiceError(f"Valkey does not answer: {error}") from error
                time.sleep(0.02)
