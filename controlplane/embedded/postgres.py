"""One real Postgres on a data folder: initialised once, started, waited for."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from .account import Account
from .children import Child, ChildStarter
from .errors import EmbeddedServiceError
from .state import write_private

ROLE = "tidegate"
DATABASE = "tidegate"
START_TIMEOUT_S = 60.0
CHILD_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Postgres:
    """Where this Postgres lives and how it is reached.

    `durable=False` switches fsync off: for tests, whose data need not survive a power cut.
    """

    bin_dir: Path
    home: Path
    log_path: Path
    port: int
    password: str
    account: Account | None
    durable: bool = True

    @property
    def data(self) -> Path:
        return self.home / "data"

    def url(self, database: str = DATABASE) -> str:
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{self.port}/{database}"

    def initialise(self) -> None:
        """Make the cluster if there is none. An interrupted attempt leaves nothing that looks like one."""
        if self.data.exists():
            return
        partial, password_file = self.home / "data.partial", self.home / "password"
        shutil.rmtree(partial, ignore_errors=True)
        write_private(password_file, self.password)
        if self.account:
            self.account.own(password_file)
        try:
            self._run_initdb(partial, password_file)
        finally:
            password_file.unlink()
        partial.rename(self.data)

    def _run_initdb(self, target: Path, password_file: Path) -> None:
        command = [
            str(self.bin_dir / "initdb"), "--pgdata", str(target), "--username", ROLE,
            "--auth", "scram-sha-256", "--pwfile", str(password_file), "--no-instructions",
            "--encoding", "UTF8", "--locale", "C",
            "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8",
        ]  # fmt: skip
        done = subprocess.run(
            command + ([] if self.durable else ["--no-sync"]),
            cwd=self.home, env=CHILD_ENV, capture_output=True, text=True, timeout=START_TIMEOUT_S,
            **(self.account.popen_arguments() if self.account else {}),
        )  # fmt: skip
        if done.returncode:
            raise EmbeddedServiceError(f"initdb failed:\n{done.stderr or done.stdout}")

    def start(self, starter: ChildStarter) -> Child:
        """Start the server, wait until it answers, and see that the database is there."""
        child = starter.start(
            "postgres", self._command(), log_path=self.log_path, cwd=self.home, env=CHILD_ENV,
            stop_signal=signal.SIGINT, account=self.account,
        )  # fmt: skip
        try:
            with self._wait_ready(child) as connection:
                self._ensure_database(connection)
        except BaseException:
            child.request_stop()
            child.wait_stopped(START_TIMEOUT_S)
            raise
        return child

    def _command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            # A new WAL file filled with zeros first holds up every commit, 40 to 80 ms each 16 MiB. It is as durable
            # without; steady installations reuse their files.
            "wal_init_zero": "off",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.bin_dir / "postgres"), "-D", str(self.data), *options]

    def _wait_ready(self, child: Child) -> psycopg.Connection:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5)
            except psycopg.OperationalError as error:
                if not child.is_running:
                    raise EmbeddedServiceError(f"Postgres ended at once:\n{child.log_tail()}") from error
                if time.monotonic() > deadline:
                    raise EmbeddedServiceError(
                        f"Postgres does not answer: {error}\n{child.log_tail()}"
                    ) from error
            time.sleep(0.03)

    def _ensure_database(self, connection: psycopg.Connection) -> None:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
