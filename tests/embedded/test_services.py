"""The embedded Postgres and Valkey: one life with their supervisor, data that stays, one holder at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from controlplane.embedded import DataDirInUseError, EmbeddedServices
from controlplane.embedded.children import ChildStarter
from controlplane.embedded.errors import EmbeddedServiceError

TIMEOUT_S = 30.0
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change to another account")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory in the open; pytest's tmp_path lies under a folder of mode 0700."""
    with tempfile.TemporaryDirectory(prefix="tidegate-embedded-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder) / "data"


@pytest.fixture
def closed_data_dir() -> Iterator[Path]:
    """A data directory under a parent that only its owner may pass, as in /root."""
    with tempfile.TemporaryDirectory(prefix="tidegate-embedded-") as folder:
        yield Path(folder) / "data"


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def start_in_foreground(data_dir: Path, **options: object) -> tuple[subprocess.Popen[str], dict[str, str]]:
    command = [sys.executable, "-m", "controlplane.embedded", "--json", "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    return process, json.loads(process.stdout.readline())


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process that names the data directory's servers, found by pid: supervisors are not among them."""
    state = json.loads((data_dir / "embedded.json").read_text())
    return [psutil.Process(int(pid)) for pid, _ in state["processes"].values() if psutil.pid_exists(int(pid))]


def write_marks(services: EmbeddedServices) -> None:
    with psycopg.connect(services.database_url) as connection:
        connection.execute("CREATE TABLE mark (word text)")
        connection.execute("INSERT INTO mark VALUES ('kept')")
    with redis.Redis.from_url(services.redis_url) as client:
        client.set("mark", "kept")
        client.execute_command("WAITAOF", 1, 0, 5000)


def read_marks(services: EmbeddedServices) -> tuple[str, bytes]:
    with psycopg.connect(services.database_url) as connection:
        row = connection.execute("SELECT word FROM mark").fetchone()
    with redis.Redis.from_url(services.redis_url) as client:
        return row[0], client.get("mark")


def test_a_restart_keeps_data_and_urls(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        write_marks(services)
        urls = services.database_url, services.redis_url
    with EmbeddedServices(data_dir) as services:
        assert (services.database_url, services.redis_url, *read_marks(services)) == (*urls, "kept", b"kept")


def test_a_kill_of_the_servers_loses_no_committed_data(data_dir: Path) -> None:
    services = EmbeddedServices(data_dir).start()
    write_marks(services)
    for pid in services.pids.values():
        os.kill(pid, signal.SIGKILL)
    services.stop()
    with EmbeddedServices(data_dir) as restarted:
        assert read_marks(restarted) == ("kept", b"kept")


def test_a_second_start_on_the_same_directory_is_refused(data_dir: Path) -> None:
    with (
        EmbeddedServices(data_dir),
        pytest.raises(DataDirInUseError, match=f"in use by process {os.getpid()}"),
    ):
        EmbeddedServices(data_dir).start()


def test_a_directory_that_cannot_be_made_is_refused_in_words(data_dir: Path) -> None:
    data_dir.write_text("a file where the directory should be")
    with pytest.raises(
        EmbeddedServiceError, match=f"{data_dir} cannot be used: .* Choose another with --data-dir"
    ):
        EmbeddedServices(data_dir).start()


def test_a_refused_second_start_leaves_the_first_running(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        with pytest.raises(DataDirInUseError):
            EmbeddedServices(data_dir).start()
        services.check()
        assert redis.Redis.from_url(services.redis_url).ping()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_server_outlives_its_supervisor(data_dir: Path, signum: signal.Signals) -> None:
    supervisor, _ = start_in_foreground(data_dir)
    servers = processes_of(data_dir)
    assert len(servers) == 2
    supervisor.send_signal(signum)
    supervisor.wait(TIMEOUT_S)
    _, alive = psutil.wait_procs(servers, timeout=TIMEOUT_S)
    assert alive == []


def test_sigint_stops_a_supervisor_that_a_script_started_in_the_background(data_dir: Path) -> None:
    def ignore_sigint() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does before a command with `&`

    supervisor, _ = start_in_foreground(data_dir, preexec_fn=ignore_sigint)
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(TIMEOUT_S) == 0


def test_a_start_right_after_kill_9_waits_for_the_old_servers(data_dir: Path) -> None:
    supervisor, _ = start_in_foreground(data_dir)
    supervisor.kill()
    supervisor.wait(TIMEOUT_S)
    with EmbeddedServices(data_dir) as services:
        services.check()
        assert psycopg.connect(services.database_url).execute("SELECT 1").fetchone() == (1,)


def test_the_watcher_stops_the_servers_where_the_kernel_does_not(data_dir: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from controlplane.embedded import EmbeddedServices;"
        "from controlplane.embedded.children import ChildStarter;"
        "s = EmbeddedServices(Path(sys.argv[1]), starter=ChildStarter(use_watcher=True)).start();"
        "print('up', flush=True); sys.stdin.read()"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", script, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout.readline() == "up\n"
    servers = processes_of(data_dir)
    supervisor.kill()
    supervisor.wait(TIMEOUT_S)
    _, alive = psutil.wait_procs(servers, timeout=TIMEOUT_S)
    assert alive == []


def test_a_watched_start_and_stop_leaves_no_watcher(data_dir: Path) -> None:
    starter = ChildStarter(use_watcher=True)
    with EmbeddedServices(data_dir, starter=starter):
        watcher = starter._watcher.process
    starter.close()
    assert watcher.poll() == 0


def test_an_ended_server_is_noticed_with_the_end_of_its_log(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        os.kill(services.pids["valkey"], signal.SIGTERM)

        def noticed() -> bool:
            try:
                services.check()
            except RuntimeError as error:
                return "valkey ended unexpectedly" in str(error) and "bye bye" in str(error)
            return False

        assert wait_until(noticed)


def test_both_servers_want_the_password(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(services.database_url.replace("tidegate:", "tidegate:wrong", 1))
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url("redis://" + services.redis_url.split("@")[1]).ping()


def test_a_taken_port_is_replaced(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        taken = services.redis_url
    with EmbeddedServices(data_dir.with_name("other")) as other:
        state = json.loads((data_dir / "embedded.json").read_text())
        other_port = json.loads((other.data_dir / "embedded.json").read_text())["valkey_port"]
        (data_dir / "embedded.json").write_text(json.dumps(state | {"valkey_port": other_port}))
        with EmbeddedServices(data_dir) as again:
            assert again.redis_url not in (
                taken.replace(str(state["valkey_port"]), str(other_port)),
                other.redis_url,
            )


@needs_root
def test_root_runs_the_servers_as_nobody(data_dir: Path) -> None:
    with EmbeddedServices(data_dir) as services:
        assert {psutil.Process(pid).username() for pid in services.pids.values()} == {"nobody"}


@needs_root
def test_root_keeps_data_under_a_closed_parent_through_a_restart(closed_data_dir: Path) -> None:
    with EmbeddedServices(closed_data_dir) as services:
        write_marks(services)
    with EmbeddedServices(closed_data_dir) as services:
        marks = read_marks(services)
    services.remove_data()
    assert marks == ("kept", b"kept")


@needs_root
def test_a_closed_parent_stays_closed(closed_data_dir: Path) -> None:
    mode = closed_data_dir.parent.stat().st_mode
    services = EmbeddedServices(closed_data_dir)
    with services:
        pass
    services.remove_data()
    assert closed_data_dir.parent.stat().st_mode == mode
