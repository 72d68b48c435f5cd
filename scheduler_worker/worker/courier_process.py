"""The courier in a process of its own: what it costs to speak to Redis is not taken from the step loop.

`CourierProcess` is the loop's end: orders go through a socket as msgpack, news come back through it, and two
numbers that the loop looks at in every turn lie in shared memory. The child ends with its parent, however that
ends, and holds no more than the parent has said: it renews no lease by itself.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from scheduler_worker.protocol.messages import FrameRow
from scheduler_worker.protocol.token_bytes import unpack
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.courier import Courier, OutgoingRow
from scheduler_worker.worker.inbox import (
    ClaimsHeld,
    ClaimsLost,
    ClaimsSettled,
    HelperThread,
    News,
    Receiver,
    ThreadFailed,
)

logger = logging.getLogger(__name__)

MAX_QUEUED_STEPS: Final = 4
LOOK_EVERY_S: Final = 0.0005
_NEVER: Final = float("-inf")
_LENGTH: Final = 4
_BUFFER_BYTES: Final = 1 << 20
_encode = msgspec.msgpack.Encoder().encode

GatewayRow: TypeAlias = tuple[str, FrameRow]
"""A row and the gateway that it is for."""


class CourierFailed(RuntimeError):
    """The courier's process ended, or met an error that it was not made for."""


# --- what crosses the socket


class Task(Struct, frozen=True, tag=True):
    """The first message: for whom to work. In the socket, since command lines and environments are readable."""

    redis_url: str
    pool: str
    worker: str
    lease_s: float
    log_level: int


class Claim(Struct, frozen=True, tag=True):
    request_ids: tuple[str, ...]


class Publish(Struct, frozen=True, tag=True):
    step: int
    rows: list[GatewayRow]


class Renew(Struct, frozen=True, tag=True):
    """No more than the wish."""


class Leave(Struct, frozen=True, tag=True):
    timeout_s: float


class Failure(Struct, frozen=True, tag=True):
    """What a `ThreadFailed` says, in words."""

    error: str


Order: TypeAlias = Task | Claim | Publish | Renew | Leave
Report: TypeAlias = ClaimsSettled | ClaimsLost | ClaimsHeld | Failure


class Channel:
    """Messages with their lengths in front, over a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    def send(self, message: Order | Report) -> None:
        """Raises `OSError` when the other end is gone."""
        data = _encode(message)
        with self._lock:
            self._socket.sendall(len(data).to_bytes(_LENGTH, "little") + data)

    def messages(self) -> Iterator[bytes]:
        """Whole messages until the other end is gone."""
        with self._socket.makefile("rb", _BUFFER_BYTES) as stream:
            while len(head := stream.read(_LENGTH)) == _LENGTH:
                size = int.from_bytes(head, "little")
                if len(data := stream.read(size)) < size:
                    return
                yield data


class Progress:
    """How many orders are done and until when the lease lasts (by the system's monotonic clock), for both ends."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 2 * 8)
        self._numbers = memoryview(self._map).cast("d")

    @property
    def num_done(self) -> int:
        return int(self._numbers[0])

    @property
    def lease_ends_at(self) -> float:
        return self._numbers[1]

    def set(self, num_done: int, lease_ends_at: float) -> None:
        """The lease first: whoever sees the order done sees its lease."""
        self._numbers[1] = lease_ends_at
        self._numbers[0] = num_done


# --- the loop's end


class CourierProcess(HelperThread):
    """The courier as the loop sees it. The thread only hands news to the inbox."""

    def __init__(self, redis_url: str, inbox: Receiver, pool: str, worker: str, lease_s: float) -> None:
        super().__init__("courier", inbox)
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as memory:
            memory.truncate(2 * 8)
            self._progress = Progress(memory.fileno())
            self._progress.set(0, _NEVER)
            fds = (theirs.fileno(), memory.fileno())
            command = [sys.executable, "-m", "scheduler_worker.worker.courier_process", *map(str, fds)]
            self._process = subprocess.Popen(command, pass_fds=fds)
        self._channel = Channel(ours)
        self._num_ordered = 0
        self._last_order_at = _NEVER
        self._is_leaving = False
        self._channel.send(Task(redis_url, pool, worker, lease_s, logging.getLogger().getEffectiveLevel()))

    @property
    def lease_ends_at(self) -> float:
        """Monotonic instant until which the lease surely lasts."""
        return self._progress.lease_ends_at

    @property
    def num_queued(self) -> int:
        """Orders not yet carried out."""
        return self._num_ordered - self._progress.num_done

    def claim(self, request_ids: tuple[str, ...]) -> None:
        """Try to take these; the outcome arrives as `ClaimsSettled`."""
        self._order(Claim(request_ids))

    def publish(self, step: int, rows: list[GatewayRow]) -> None:
        """Send a step's rows; what is no longer ours arrives as `ClaimsLost`."""
        self._order(Publish(step, rows))

    def renew(self) -> None:
        """Renew the lease; what we hold arrives as `ClaimsHeld`."""
        self._order(Renew())

    def renew_if_due(self, every_s: float) -> None:
        """Renew when nothing was ordered for `every_s`."""
        if time.monotonic() - self._last_order_at >= every_s:
            self.renew()

    def wait_for_space(self, timeout_s: float) -> bool:
        """Hold the loop back while `MAX_QUEUED_STEPS` orders wait; whether there is room now."""
        ends_at = time.monotonic() + timeout_s
        while self.num_queued >= MAX_QUEUED_STEPS:
            if time.monotonic() >= ends_at:
                return False
            time.sleep(LOOK_EVERY_S)
        return True

    def leave(self, timeout_s: float) -> None:
        """Carry out what is ordered, give back all claims, end the lease. Gives up after `timeout_s`."""
        self._is_leaving = True
        self._order(Leave(timeout_s))
        try:
            self._process.wait(timeout_s + 2 * transport.SOCKET_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def work(self) -> None:
        """Hand over news until the process ends."""
        decoder = msgspec.msgpack.Decoder(Report)
        for data in self._channel.messages():
            report = decoder.decode(data)
            if isinstance(report, Failure):
                raise CourierFailed(report.error)
            self._inbox.put(report)
        if not self._is_leaving:
            raise CourierFailed(f"its process ended with status {self._process.wait()}")

    def _order(self, order: Order) -> None:
        """A courier that is gone is told by `work`."""
        self._num_ordered += 1
        self._last_order_at = time.monotonic()
        try:
            self._channel.send(order)
        except OSError as error:
            logger.error("the courier takes no orders: %s", error)


# --- the child


class _Outputs(Receiver):
    """All output of the requests that are held, by id and attempt, for corrections; news pass through here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tokens: dict[tuple[str, int], list[int]] = {}

    def put(self, news: News) -> None:
        """Called by the courier's thread."""
        match news:
            case ClaimsSettled(_, won):
                for one in won:
                    key = one.header.request_id, one.header.attempt
                    self._tokens[key] = unpack(one.token_ids).tolist()
                self._channel.send(news)
            case ClaimsLost(attempts):
                for lost in attempts.items():
                    self._tokens.pop(lost, None)
                self._channel.send(news)
            case ClaimsHeld(attempts):
                for gone in list(self._tokens.keys() - attempts.items()):
                    self._tokens.pop(gone, None)
                self._channel.send(news)
            case ThreadFailed(_, error):
                self._channel.send(Failure(f"{type(error).__name__}: {error}"))

    def outgoing(self, gateway: str, row: FrameRow) -> OutgoingRow:
        """The row with all output of its request so far. Called by the main thread."""
        key = row.request_id, row.attempt
        tokens = self._tokens.setdefault(key, [])
        tokens.extend(row.token_ids)
        if row.finish:
            self._tokens.pop(key, None)
        return OutgoingRow(gateway, row, tokens)


def main(socket_fd: int, memory_fd: int) -> None:
    """Carry out orders until told to leave, or until the parent is gone."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # they are the parent's to answer
    channel, progress = Channel(socket.socket(fileno=socket_fd)), Progress(memory_fd)
    decoder = msgspec.msgpack.Decoder(Order)
    orders = (decoder.decode(data) for data in channel.messages())
    task = next(orders, None)
    if not isinstance(task, Task):
        return
    logging.basicConfig(level=task.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    outputs = _Outputs(channel)
    courier = Courier(
        transport.connect(task.redis_url),
        RedisClock(),
        outputs,
        task.pool,
        task.worker,
        task.lease_s,
        progress.set,
    )
    courier.start()
    for order in orders:
        match order:
            case Claim(request_ids):
                courier.claim(request_ids)
            case Publish(step, rows):
                courier.publish(step, [outputs.outgoing(gateway, row) for gateway, row in rows])
            case Renew():
                courier.renew()
            case Leave(timeout_s):
                courier.leave(timeout_s)
                return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # the courier's thread may still wait for Redis
