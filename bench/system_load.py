"""One process of load: `python -m bench.system_load JOB OUT`; `bench.system` starts several.

It builds its requests, opens its connections, says `ready`, reads the instant of the start (of the monotonic clock,
which all processes of a machine share) and sends: at given times, or as fast as answers come. What a client sees is
timed when its bytes arrive; nothing of an answer is parsed but its status and its end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec

END = b"0\r\n\r\n"
EVENT = b"data: "
NUM_TAIL_BYTES = 400
USAGE = re.compile(rb'"completion_tokens":(\d+)')
REQUEST_ID = re.compile(rb"x-request-id: *([0-9a-f-]+)", re.IGNORECASE)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
BROKEN = -1
OPEN_AT_ONCE = 64


class Planned(msgspec.Struct, array_like=True, frozen=True):
    """A request: when it is sent (in an open loop), to which gateway, and its lengths in tokens."""

    index: int
    at_s: float
    gateway: int
    class_id: str
    num_prompt_tokens: int
    num_output_tokens: int


class Job(msgspec.Struct):
    """What one process has to do. `concurrency` 0: at the planned times; else so many at once, for `seconds`."""

    ports: list[int]
    api_keys: dict[str, str]
    model: str
    vocab_size: int
    requests: list[Planned]
    concurrency: int = 0
    seconds: float = 0.0
    num_connections: int = 8
    patience_s: float = 60.0


class Seen(msgspec.Struct, array_like=True):
    """What became of one request; seconds since the start, `lag_s` behind plan. Status -1: the connection broke,
    0: no answer in time."""

    index: int
    sent_s: float
    lag_s: float
    status: int = 0
    first_s: float | None = None
    end_s: float | None = None
    num_tokens: int = 0
    request_id: str = ""


def request_bytes(job: Job, planned: Planned) -> bytes:
    """A streamed text completion of exactly the planned lengths; the prompt is random, but always the same."""
    draw = random.Random(planned.index)
    body = json.dumps(
        {
            "model": job.model,
            "prompt": [draw.randrange(job.vocab_size) for _ in range(planned.num_prompt_tokens)],
            "max_tokens": planned.num_output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        separators=(",", ":"),
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {job.api_keys[planned.class_id]}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request on it."""

    def __init__(self, done: Callable[[Connection], None]) -> None:
        self._done = done
        self._transport: asyncio.Transport | None = None
        self._seen: Seen | None = None
        self._origin = 0.0
        self._head = b""
        self._tail = b""
        self._num_left = 0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._seen is not None:
            self._finish(BROKEN, time.monotonic())

    def send(self, data: bytes, seen: Seen, origin: float) -> None:
        """Send a request and fill in `seen` as its answer comes."""
        assert self._transport is not None
        self._seen, self._origin = seen, origin
        self._head = self._tail = b""
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        now, seen = time.monotonic(), self._seen
        if seen is None:
            return
        if not seen.status:
            data = self._read_head(seen, data)
        if seen.status == 200:
            self._read_events(seen, data, now)
        elif seen.status:
            self._num_left -= len(data)
            if self._num_left <= 0:
                self._finish(seen.status, now)

    def _read_head(self, seen: Seen, data: bytes) -> bytes:
        head, found, body = (self._head + data).partition(b"\r\n\r\n")
        if not found:
            self._head = head
            return b""
        seen.status = int(head[9:12])
        if request_id := REQUEST_ID.search(head):
            seen.request_id = request_id[1].decode()
        length = LENGTH.search(head)
        self._num_left = int(length[1]) if length else 0
        return body

    def _read_events(self, seen: Seen, data: bytes, now: float) -> None:
        if seen.first_s is None and EVENT in data:
            seen.first_s = now - self._origin
        self._tail = data[-NUM_TAIL_BYTES:] if len(data) >= NUM_TAIL_BYTES else (self._tail + data)[-NUM_TAIL_BYTES:]
        if self._tail.endswith(END):
            usage = USAGE.search(self._tail)
            seen.num_tokens = int(usage[1]) if usage else 0
            self._finish(200 if usage else BROKEN, now)

    def _finish(self, status: int, now: float) -> None:
        assert self._seen is not None
        self._seen.status, self._seen.end_s = status, now - self._origin
        self._seen = None
        self._done(self)


class Load:
    """Sends one job's requests and keeps what it saw."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._data = [request_bytes(job, one) for one in job.requests]
        self._idle: list[list[Connection]] = [[] for _ in job.ports]
        self._gateway_of: dict[Connection, int] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._num_open = 0
        self._origin = 0.0
        self._next: Iterator[int] = iter(range(len(job.requests)))
        self.seen: list[Seen] = []

    async def open_connections(self) -> None:
        """Some for each gateway: a first request need not wait for its connection."""
        for gateway in range(len(self._job.ports)):
            for first in range(0, self._job.num_connections, OPEN_AT_ONCE):
                num = min(OPEN_AT_ONCE, self._job.num_connections - first)
                self._idle[gateway] += await asyncio.gather(*(self._connect(gateway) for _ in range(num)))

    async def run(self, origin: float) -> None:
        """All requests, from the instant `origin`; returns when the last answer has ended."""
        self._origin = origin
        await asyncio.sleep(max(0.0, origin - time.monotonic()))
        if self._job.concurrency:
            for _ in range(self._job.concurrency):
                self._send_next()
            await asyncio.sleep(self._job.seconds)
        else:
            await self._send_by_plan()
        deadline = time.monotonic() + self._job.patience_s
        while self._num_open and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _send_by_plan(self) -> None:
        for place, planned in enumerate(self._job.requests):
            early_s = self._origin + planned.at_s - time.monotonic()
            if early_s > 0:
                await asyncio.sleep(early_s)
            self._send(place)

    def _send_next(self) -> None:
        place = next(self._next, None)
        if place is not None:
            self._send(place)

    def _send(self, place: int) -> None:
        planned = self._job.requests[place]
        sent_s = time.monotonic() - self._origin
        seen = Seen(planned.index, sent_s, sent_s - planned.at_s if not self._job.concurrency else 0.0)
        self.seen.append(seen)
        self._num_open += 1
        idle = self._idle[planned.gateway]
        while idle:
            connection = idle.pop()
            if connection.is_open:
                connection.send(self._data[place], seen, self._origin)
                return
        opening = asyncio.ensure_future(self._open_and_send(planned.gateway, self._data[place], seen))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open_and_send(self, gateway: int, data: bytes, seen: Seen) -> None:
        try:
            connection = await self._connect(gateway)
        except OSError:
            seen.status = BROKEN
            self._num_open -= 1
            return
        connection.send(data, seen, self._origin)

    async def _connect(self, gateway: int) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self._ended), "127.0.0.1", self._job.ports[gateway]
        )
        self._gateway_of[connection] = gateway
        return connection

    def _ended(self, connection: Connection) -> None:
        self._num_open -= 1
        if connection.is_open:
            self._idle[self._gateway_of[connection]].append(connection)
        if self._job.concurrency and time.monotonic() - self._origin < self._job.seconds:
            self._send_next()


async def work(job: Job) -> list[Seen]:
    """Prepare, wait for the word, run."""
    load = Load(job)
    await load.open_connections()
    gc.collect()
    gc.disable()
    print("ready", flush=True)
    origin = float(await asyncio.to_thread(sys.stdin.readline))
    await load.run(origin)
    return load.seen


def main() -> None:
    job_path, out = (Path(one) for one in sys.argv[1:])
    job = msgspec.msgpack.decode(job_path.read_bytes(), type=Job)
    try:
        import uvloop
    except ImportError:
        seen = asyncio.run(work(job))
    else:
        seen = uvloop.run(work(job))
    out.write_bytes(msgspec.msgpack.encode(seen))


if __name__ == "__main__":
    main()
