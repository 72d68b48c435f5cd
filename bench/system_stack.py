"""The processes of a whole installation on loopback, for a benchmark: started as the demo starts them.

Postgres and Valkey from their wheels, one worker, Celery and its beat, and as many web processes as wanted, each a
gateway on a port of its own. Nothing is started again when it ends: the benchmark fails with the end of its log.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from controlplane.embedded.children import ChildStarter
from controlplane.embedded.demo import ROOT, child_env, control_plane, readiness, remembered_secret
from controlplane.embedded.errors import EmbeddedServiceError
from controlplane.embedded.programs import Program, Programs
from controlplane.embedded.services import EmbeddedServices
from controlplane.embedded.state import usable_port
from scheduler_worker.core.policy import Policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import WorkerInfo, WorkerTelemetry, decode
from scheduler_worker.protocol.telemetry import read_fields

POOL = "default"
WORKER = "worker-1"
POLL_S = 0.5
KEEP_ALIVE_S = "120"
RECORDED_WITHIN_S = 20.0
SELECT_PARTS = """
    SELECT id::text, queue_s, formation_s, prefill_s, ttft_s FROM inference_inferencerequest WHERE state = 'succeeded'
"""


@dataclass(frozen=True)
class StackSettings:
    """How the installation is set up. `worker_env` is added to the worker's environment."""

    data_dir: Path
    model: Path
    num_gateways: int
    num_celery: int
    worker_env: dict[str, str]
    ready_timeout_s: float = 300.0


class Stack:
    """One installation's life: start, publish policies, look inside, stop."""

    def __init__(self, settings: StackSettings, say: Callable[[str], None]) -> None:
        self._settings, self._say = settings, say
        self.logs = settings.data_dir / "logs"
        self._starter = ChildStarter()
        self._services = EmbeddedServices(settings.data_dir, starter=self._starter)
        self._programs = Programs(self._starter, ROOT, self.logs, our_env(), say)
        self.ports: list[int] = []

    def start(self, policy: Policy, prepare_model: Program | None) -> None:
        """Everything up to the first request that would be served."""
        self._services.start()
        self._say("Postgres and Valkey are up")
        self._set_env()
        making = self._programs.begin_step(prepare_model) if prepare_model else None
        self._programs.run_step(Program("migrate", (sys.executable, "manage.py", "migrate", "--no-input")))
        if making is not None:
            self._programs.finish_step(making)
            self._say("the model is written")
        worker = (sys.executable, "-m", "scheduler_worker.worker")
        self._programs.start(Program("worker", worker, self._settings.worker_env))
        self.publish(policy)
        self._start_control_plane()
        self._wait_ready()

    def publish(self, policy: Policy) -> None:
        """Make this the live policy, by the same command that seeds the demo."""
        path = self._settings.data_dir / "policy.json"
        path.write_text(policy.model_dump_json(indent=1))
        command = ("manage.py", "seed_demo", "--policy", str(path), "--json", str(self._seeded), "--replace-policy")
        self._programs.run_step(Program("seed", (sys.executable, *command)))

    @property
    def api_keys(self) -> dict[str, str]:
        """One key for each class."""
        return dict(json.loads(self._seeded.read_text())["api_keys"])

    def worker_info(self) -> WorkerInfo:
        """What the worker publishes of itself."""
        data: Any = self._redis().get(keys.WORKER_INFO.of(POOL, WORKER))
        if data is None:
            raise EmbeddedServiceError(f"the worker publishes nothing:\n{self._log_tail('worker')}")
        return decode(WorkerInfo, data)

    def worker_telemetry(self, since: float, until: float) -> list[WorkerTelemetry]:
        """The worker's messages between two instants of the wall clock, as far as the stream goes back."""
        entries: Any = self._redis().xrange(keys.TELEMETRY.of(POOL), min=round(1e3 * since))
        messages = (read_fields(fields) for _, fields in entries)
        return [one for one in messages if isinstance(one, WorkerTelemetry) and since <= one.at <= until]

    def queued(self, since: float) -> dict[str, list[float | None]]:
        """Of each request that was queued since this instant of the wall clock: how long after its headers, and how
        long after that its claim reached Valkey (None: not yet). Seconds by Valkey's clock, which tells them in ms."""
        entries: Any = self._redis().xrange(keys.CHANGES.of(POOL), min=round(1e3 * since))
        found: dict[str, list[float | None]] = {}
        queued_at: dict[str, float] = {}
        for entry_id, fields in entries:
            at, change = int(entry_id.split(b"-")[0]) / 1e3, scripts.read_change(fields)
            if change.op is scripts.ChangeOp.ADD and change.header is not None:
                queued_at[change.id] = at
                found[change.id] = [at - change.header.arrived_at, None]
            elif change.op is scripts.ChangeOp.CLAIMED and change.id in found:
                found[change.id][1] = at - queued_at[change.id]
        return found

    def parts(self) -> dict[str, list[float | None]]:
        """How long each part took, by request id, once Celery has recorded what ended (it is waited for a while)."""
        with psycopg.connect(self._services.database_url, autocommit=True) as connection:
            deadline = time.monotonic() + RECORDED_WITHIN_S
            while self._num_open(connection) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            if num_open := self._num_open(connection):
                self._say(f"  {num_open} requests are not yet recorded by Celery")
            rows = connection.execute(SELECT_PARTS).fetchall()
        return {one[0]: list(one[1:]) for one in rows}

    @staticmethod
    def _num_open(connection: psycopg.Connection) -> int:
        row = connection.execute("SELECT count(*) FROM inference_inferencerequest WHERE state = 'accepted'").fetchone()
        return int(row[0]) if row else 0

    def check(self) -> None:
        """Raise EmbeddedServiceError if anything has ended by itself."""
        self._services.check()
        for name, pid in self._programs.pids.items():
            if not is_alive(pid):
                raise EmbeddedServiceError(f"{name} ended by itself:\n{self._log_tail(name)}")

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time by process so far; `NAME's` counts the children of NAME."""
        found: dict[str, float] = {}
        for name, pid in {**self._services.pids, **self._programs.pids}.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                found[name] = cpu_s(process)
                if children := process.children(recursive=True):
                    found[f"{name}'s"] = sum(cpu_s(one) for one in children)
        return found

    def stop(self) -> None:
        self._programs.stop_all()
        self._services.stop()
        self._starter.close()

    @property
    def _seeded(self) -> Path:
        return self._settings.data_dir / "demo.json"

    def _set_env(self) -> None:
        model = self._settings.model
        self._programs.set_env(
            TIDEGATE_DATABASE_URL=self._services.database_url,
            TIDEGATE_REDIS_URL=self._services.redis_url,
            TIDEGATE_SECRET_KEY=remembered_secret(self._settings.data_dir / "secret_key"),
            TIDEGATE_WORKER_ID=WORKER,
            TIDEGATE_MODEL=str(model),
            TIDEGATE_MODEL_NAME=model.name,
        )

    def _start_control_plane(self) -> None:
        """Celery first: it is up when the gateways are."""
        _, celery, beat = control_plane(0, self._settings.data_dir)
        for number in range(1, self._settings.num_celery + 1):
            self._programs.start(Program(f"celery-{number}", (*celery.argv, "--hostname", f"celery{number}@%h")))
        self._programs.start(beat)
        for number in range(1, self._settings.num_gateways + 1):
            port = usable_port(0)
            web = control_plane(port, self._settings.data_dir)[0]
            argv = (*web.argv, "--timeout-keep-alive", KEEP_ALIVE_S)
            self._programs.start(Program(f"web-{number}", argv, {"TIDEGATE_GATEWAY_ID": f"web-{number}"}))
            self.ports.append(port)
        for port in self.ports:
            self._wait_answers(port)

    def _wait_answers(self, port: int) -> None:
        for _ in self._polls(60.0, lambda: f"port {port}: {readiness(port)}"):
            if not readiness(port).startswith("the web process"):
                return

    def _wait_ready(self) -> None:
        def state() -> str:
            return "; ".join(f"{port}: {readiness(port)}" for port in self.ports)

        for _ in self._polls(self._settings.ready_timeout_s, state):
            if all(readiness(port) == "200" for port in self.ports):
                self._say(f"ready: {len(self.ports)} gateways, 1 worker")
                return

    def _polls(self, timeout_s: float, state: Callable[[], str]) -> Iterator[None]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(POLL_S)
        raise EmbeddedServiceError(f"not ready after {timeout_s:.0f} s: {state()}\n{self._log_tail('worker')}")

    def _log_tail(self, name: str) -> str:
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-30:]) if path.exists() else ""

    def _redis(self) -> redis.Redis:
        return redis.Redis.from_url(self._services.redis_url, socket_timeout=10)


def our_env() -> dict[str, str]:
    """The demo's environment for children, and the packages that are on our own path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**child_env(), "PYTHONPATH": path}


def is_alive(pid: int) -> bool:
    """Whether a child runs; one that ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of one process; 0 for one that has just ended."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
