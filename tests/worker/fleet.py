"""Real worker processes on a real Valkey, and a client that reads their output as a gateway does."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from controlplane.common.redis import run_sync
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import (
    Frame,
    FrameRow,
    Header,
    Payload,
    PolicyAnnouncement,
    Requeued,
    SamplingParams,
    WorkerInfo,
    WorkerTelemetry,
    decode,
)
from scheduler_worker.protocol.telemetry import read_fields

POOL = "fleet"
GATEWAY = "g1"
TIMEOUT_S = 30.0


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """The first true value of `condition`; fails loudly after the timeout."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


@dataclass
class Output:
    """What a client received of one request. A token missing, doubled or of a stale attempt is a fault."""

    tokens: list[int] = field(default_factory=list)
    attempt: int = 0
    workers: list[str] = field(default_factory=list)
    finish: str = ""
    error: str = ""
    faults: list[str] = field(default_factory=list)
    last: FrameRow | None = None

    def take_row(self, worker: str, row: FrameRow) -> None:
        if row.attempt != self.attempt:
            self.faults.append(f"a row of attempt {row.attempt} during attempt {self.attempt}")
        if row.offset != len(self.tokens):
            self.faults.append(f"a row at {row.offset} after {len(self.tokens)} tokens")
        if self.finish:
            self.faults.append("a row after the end")
        self.tokens.extend(row.token_ids)
        self.workers.append(worker)
        self.finish, self.error, self.last = row.finish, row.error, row

    def take_requeued(self, news: Requeued) -> None:
        if news.offset != len(self.tokens):
            self.faults.append(f"requeued at {news.offset} after {len(self.tokens)} tokens")
        self.attempt = news.attempt


class Client:
    """Enqueues as a gateway does and folds the output stream."""

    def __init__(self, url: str, pool: str = POOL) -> None:
        self.redis = redis.Redis.from_url(url)
        self.pool = pool
        self.outputs: dict[str, Output] = {}
        self._cursor: bytes | str = "0-0"

    def run(self, call: scripts.Call[scripts.T]) -> scripts.T:
        return run_sync(self.redis, call)

    def send(self, request_id: str, prompt: list[int], max_tokens: int = 16, **fields: Any) -> None:
        sampling = fields.pop("sampling", None) or SamplingParams(temperature=0.0, max_tokens=max_tokens)
        made: dict[str, Any] = {
            "class_id": "high",
            "tenant": "acme",
            "gateway": GATEWAY,
            "arrived_at": self.now(),
            "num_prompt_tokens": len(prompt),
            "max_tokens": max_tokens,
        }
        header = Header(request_id=request_id, **(made | fields))
        token_ids = struct.pack(f"<{len(prompt)}I", *prompt)
        payload = Payload(request_id=request_id, token_ids=token_ids, sampling=sampling)
        self.outputs[request_id] = Output()
        self.run(scripts.enqueue(self.pool, header, payload))

    def now(self) -> float:
        seconds, micros = self.redis.time()
        return seconds + micros / 1e6

    def cancel(self, request_id: str) -> scripts.CancelOutcome:
        return self.run(scripts.cancel(self.pool, request_id))

    def publish_policy(self, version: int, policy: Policy | None = None) -> None:
        document = (policy or default_policy()).model_dump_json()
        announcement = PolicyAnnouncement(version=version, document=document, published_at=self.now())
        self.run(scripts.announce_policy(self.pool, announcement))

    def read(self) -> None:
        """Take everything that has arrived."""
        stream = keys.OUTPUT.of(self.pool, GATEWAY)
        for entry_id, fields in self.redis.xrange(stream, min=f"({_text(self._cursor)}"):
            self._cursor = entry_id
            message = scripts.read_output(fields)
            if isinstance(message, Frame):
                for row in message.rows:
                    self.outputs[row.request_id].take_row(message.worker, row)
            else:
                self.outputs[message.request_id].take_requeued(message)

    def num_tokens(self, request_id: str) -> int:
        self.read()
        return len(self.outputs[request_id].tokens)

    def wait_for_tokens(self, request_id: str, num: int) -> None:
        wait_until(lambda: self.num_tokens(request_id) >= num, f"{num} tokens of {request_id}")

    def wait_for_end(self, *request_ids: str, timeout_s: float = TIMEOUT_S) -> None:
        def ended() -> bool:
            self.read()
            return all(self.outputs[one].finish for one in request_ids or self.outputs)

        wait_until(ended, "the end of every request", timeout_s)

    def faults(self) -> dict[str, list[str]]:
        self.read()
        return {one: output.faults for one, output in self.outputs.items() if output.faults}

    def telemetry(self) -> list[WorkerTelemetry]:
        entries = self.redis.xrange(keys.TELEMETRY.of(self.pool))
        messages = [read_fields(fields) for _, fields in entries]
        return [one for one in messages if isinstance(one, WorkerTelemetry)]

    def info(self, worker: str) -> WorkerInfo | None:
        data = self.redis.get(keys.WORKER_INFO.of(self.pool, worker))
        return decode(WorkerInfo, data) if data else None


class WorkerProcess:
    """One worker; its log is kept for a failing test to show."""

    def __init__(self, worker: str, url: str, log: Path, module: str, environ: dict[str, str]) -> None:
        self.worker, self.log = worker, log
        self._file = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdout=self._file,
            stderr=self._file,
            env=os.environ
            | {"TIDEGATE_REDIS_URL": url, "TIDEGATE_POOL": POOL, "TIDEGATE_WORKER_ID": worker}
            | environ,
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        return self.process.wait(timeout_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)
        self._file.close()


class Fleet:
    """The workers of a test. `client` speaks to them."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder
        self.client = Client(url)
        self.workers: list[WorkerProcess] = []

    def start(
        self, worker: str, redis_url: str | None = None, wait: bool = True, **executor: Any
    ) -> WorkerProcess:
        """A worker around the fake executor, ready when this returns."""
        environ = {"TIDEGATE_MODEL": "fake", "FAKE_EXECUTOR": json.dumps(executor)}
        if redis_url is not None:
            environ["TIDEGATE_REDIS_URL"] = redis_url
        return self.start_module(worker, "tests.worker.fake_worker", environ, wait)

    def start_module(
        self, worker: str, module: str, environ: dict[str, str], wait: bool = True
    ) -> WorkerProcess:
        """Any worker module, ready when this returns unless `wait` is False."""
        process = WorkerProcess(worker, self._url, self._folder / f"{worker}.log", module, environ)
        self.workers.append(process)
        if not wait:
            return process
        wait_until(
            lambda: self.client.info(worker) or process.process.poll() is not None, f"{worker} is ready", 60.0
        )
        assert process.process.poll() is None, process.log.read_text()
        return process

    def end(self) -> None:
        for worker in self.workers:
            worker.end()

    def logs(self) -> str:
        return "\n".join(f"--- {one.worker}\n{one.log.read_text()}" for one in self.workers)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
