"""Postgres and Valkey together on one data directory, with one lock and one life."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import IO

from .account import Account, open_folder, server_account
from .binaries import postgres_bin, valkey_server
from .children import Child, ChildStarter
from .errors import EmbeddedServiceError
from .postgres import Postgres
from .state import ServiceState, lock_data_dir, usable_port
from .valkey import Valkey

STOP_TIMEOUT_S = 20.0
NOT_STARTED = "the services are not started"


class EmbeddedServices:
    """A real Postgres and a real Valkey on `data_dir`, for as long as this process lives.

        with EmbeddedServices(Path("/var/lib/tidegate")) as services:
            print(services.database_url, services.redis_url)

    Both listen on 127.0.0.1 with a password, on ports that stay the same from start to start if they are
    free. However this process ends, kill -9 included, the servers stop too; committed data is kept. Start it
    from a thread that lives as long as the services should.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True, starter: ChildStarter | None = None) -> None:
        self.data_dir = data_dir.resolve()
        self.durable = durable
        self._starter = starter or ChildStarter()
        self._children: list[Child] = []
        self._lock: IO[str] | None = None
        self._postgres: Postgres | None = None
        self._valkey: Valkey | None = None

    @property
    def database_url(self) -> str:
        if self._postgres is None:
            raise EmbeddedServiceError(NOT_STARTED)
        return self._postgres.url()

    @property
    def redis_url(self) -> str:
        if self._valkey is None:
            raise EmbeddedServiceError(NOT_STARTED)
        return self._valkey.url

    @property
    def pids(self) -> dict[str, int]:
        """The servers' process ids by name."""
        return {child.name: child.pid for child in self._children}

    def start(self) -> EmbeddedServices:
        """Start both servers and wait until they answer.

        Raises:
            DataDirInUseError: another process runs services on this directory.
            EmbeddedServiceError: the directory cannot be written, or a server did not start; then the message
                carries the end of its log.
        """
        self._lock = self._take_data_dir()
        try:
            self._start_servers()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop both servers gently, then give the directory free."""
        for child in reversed(self._children):
            child.request_stop()
        for child in reversed(self._children):
            child.wait_stopped(STOP_TIMEOUT_S)
        self._children.clear()
        if self._lock:
            self._lock.close()
            self._lock = None

    def check(self) -> None:
        """Raise EmbeddedServiceError if a server has ended by itself."""
        for child in self._children:
            if not child.is_running:
                raise EmbeddedServiceError(f"{child.name} ended unexpectedly:\n{child.log_tail()}")

    def remove_data(self) -> None:
        """Delete the data directory and what lies outside it. Only when stopped."""
        if self._children:
            raise EmbeddedServiceError("stop the services before removing their data")
        home = self._home_for(server_account(), ServiceState.load(self.data_dir))
        shutil.rmtree(home)
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self) -> EmbeddedServices:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _take_data_dir(self) -> IO[str]:
        try:
            (self.data_dir / "logs").mkdir(parents=True, exist_ok=True)
            return lock_data_dir(self.data_dir)
        except OSError as error:
            raise EmbeddedServiceError(
                f"the data directory {self.data_dir} cannot be used: {error.strerror} ({error.filename}). "
                "Choose another with --data-dir."
            ) from error

    def _start_servers(self) -> None:
        account, state = server_account(), ServiceState.load(self.data_dir)
        state.stop_leftovers()
        state.save(self.data_dir)  # the instance's id must be known before anything is made under it
        home = self._home_for(account, state)
        self._postgres = self._make_postgres(home, account, state)
        self._valkey = self._make_valkey(home, account, state)
        self._postgres.initialise()
        for server in (self._valkey, self._postgres):
            child = server.start(self._starter)
            self._children.append(child)
            state.record_process(child.name, child.pid)
            state.save(self.data_dir)

    def _make_postgres(self, home: Path, account: Account | None, state: ServiceState) -> Postgres:
        state.postgres_port = usable_port(state.postgres_port)
        return Postgres(
            bin_dir=postgres_bin(account),
            home=_owned_folder(home / "postgres", account),
            log_path=self.data_dir / "logs" / "postgres.log",
            port=state.postgres_port,
            password=state.postgres_password,
            account=account,
            durable=self.durable,
        )

    def _make_valkey(self, home: Path, account: Account | None, state: ServiceState) -> Valkey:
        state.valkey_port = usable_port(state.valkey_port)
        return Valkey(
            server=valkey_server(account),
            home=_owned_folder(home / "valkey", account),
            log_path=self.data_dir / "logs" / "valkey.log",
            port=state.valkey_port,
            password=state.valkey_password,
            account=account,
        )

    def _home_for(self, account: Account | None, state: ServiceState) -> Path:
        """The data directory, or a folder outside it when the servers' account cannot get there."""
        if account is None or account.can_reach(self.data_dir):
            return self.data_dir
        home = open_folder(str(self.data_dir), state.instance_id)
        (self.data_dir / "DATA_IS_ELSEWHERE.txt").write_text(
            f"Postgres and Valkey cannot enter this folder; their data is in {home}\n"
        )
        return home


def _owned_folder(path: Path, account: Account | None) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    if account:
        account.own(path)
    return path
