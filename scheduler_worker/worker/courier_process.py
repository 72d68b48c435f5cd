"""The courier and the follower in a process of their own: what it costs to speak to Redis is not taken from the loop.

`CourierProcess` is the loop's end: orders go through a socket as msgpack, news come back through it and are read by
the loop itself, which so shares Python's lock with nobody; two numbers that the loop looks at in every turn lie in
shared memory. The child ends with its parent, however that ends, and holds no more than the parent has said: it
renews no lease by itself.
"""

from __future__ import annotations

import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import compress
from typing import Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from scheduler_worker.protocol.messages import FrameRow
from scheduler_worker.protocol.token_bytes import unpack
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.courier import Courier, OutgoingRow
from scheduler_worker.worker.follower import Follower
from scheduler_worker.worker.inbox import (
    ClaimNews,
    ClaimsHeld,
    ClaimsLost,
    ClaimsSettled,
    News,
    PolicyNews,
    QueueChanged,
    QueueMirrored,
    QueueNews,
    Receiver,
    ThreadFailed,
)

logger = logging.getLogger(__name__)

MAX_QUEUED_STEPS: Final = 4
LOOK_EVERY_S: Final = 0.0005
SWITCH_EVERY_S: Final = 0.0005
"""Three threads share Python's lock in the courier's process: news must not wait until a step's rows are made."""
_NEVER: Final = float("-inf")
_LENGTH: Final = 4
_BUFFER_BYTES: Final = 1 << 20
_encode = msgspec.msgpack.Encoder().encode


class Going(Struct, array_like=True):
    """Requests that got one token in a step and go on, by columns: nearly all rows of nearly all steps."""

    request_ids: list[str]
    attempts: list[int]
    token_ids: list[int]

    @classmethod
    def nobody(cls) -> Going:
        """No rows yet."""
        return cls([], [], [])

    def add(self, request_id: str, attempt: int, token_id: int) -> None:
        """One row more."""
        self.request_ids.append(request_id)
        self.attempts.append(attempt)
        self.token_ids.append(token_id)

    def remove(self, request_id: str) -> None:
        """Without the rows of that request."""
        kept = [one != request_id for one in self.request_ids]
        self.request_ids = list(compress(self.request_ids, kept))
        self.attempts = list(compress(self.attempts, kept))
        self.token_ids = list(compress(self.token_ids, kept))


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


class Follow(Struct, frozen=True, tag=True):
    """From now on tell what happens in the queue, beginning with all that is in it."""


class Claim(Struct, frozen=True, tag=True):
    request_ids: tuple[str, ...]


class Publish(Struct, frozen=True, tag=True):
    """Of `rows`, `offset` is for the courier to fill in."""

    step: int
    rows: list[FrameRow]
    going: Going


class Renew(Struct, frozen=True, tag=True):
    """No more than the wish."""


class Leave(Struct, frozen=True, tag=True):
    timeout_s: float


class Failure(Struct, frozen=True, tag=True):
    """What a `ThreadFailed` says, in words."""

    name: str
    error: str


Order: TypeAlias = Task | Follow | Claim | Publish | Renew | Leave
Report: TypeAlias = ClaimNews | QueueNews | Failure


class Channel:
    """Messages with their lengths in front, over a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._received = bytearray()
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

    def wait(self, timeout_s: float) -> None:
        """Until something is there to read, at most `timeout_s`."""
        select.select([self._socket], [], [], timeout_s)

    def read(self) -> Iterator[bytes]:
        """The whole messages that are here, without waiting for more; then `EOFError` if the other end is gone."""
        received, is_open = self._received, self._receive()
        begin = 0
        while len(received) - begin >= _LENGTH:
            body = begin + _LENGTH
            end = body + int.from_bytes(received[begin:body], "little")
            if end > len(received):
                break
            yield bytes(received[body:end])
            begin = end
        del received[:begin]
        if not is_open:
            raise EOFError

    def _receive(self) -> bool:
        """Take what has arrived; whether more may come."""
        try:
            while data := self._socket.recv(_BUFFER_BYTES, socket.MSG_DONTWAIT):
                self._received += data
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return False


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


class CourierProcess:
    """The courier as the loop sees it."""

    def __init__(self, redis_url: str, pool: str, worker: str, lease_s: float) -> None:
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
        self._decode = msgspec.msgpack.Decoder(Report).decode
        self._is_gone = False
        self._channel.send(Task(redis_url, pool, worker, lease_s, logging.getLogger().getEffectiveLevel()))

    @property
    def lease_ends_at(self) -> float:
        """Monotonic instant until which the lease surely lasts."""
        return self._progress.lease_ends_at

    @property
    def num_queued(self) -> int:
        """Orders not yet carried out."""
        return self._num_ordered - self._progress.num_done

    def news(self) -> Iterator[News]:
        """All that has arrived; the process's unexpected end once."""
        try:
            for data in self._channel.read():
                report = self._decode(data)
                if isinstance(report, Failure):
                    yield ThreadFailed(report.name, CourierFailed(report.error))
                else:
                    yield report
        except EOFError:
            if not self._is_gone:
                self._is_gone = True
                ended = CourierFailed(f"its process ended with status {self._process.wait()}")
                yield ThreadFailed("courier", ended)

    def wait(self, timeout_s: float) -> None:
        """Until news arrive, at most `timeout_s`."""
        self._channel.wait(timeout_s)

    def follow(self) -> None:
        """Tell what happens in the queue: `QueueMirrored`, then `QueueChanged` and `PolicyNews`."""
        self._send(Follow())

    def claim(self, request_ids: tuple[str, ...]) -> None:
        """Try to take these; the outcome arrives as `ClaimsSettled`."""
        self._order(Claim(request_ids))

    def publish(self, step: int, rows: list[FrameRow], going: Going) -> None:
        """Send a step's rows, `offset` left out; what is no longer ours arrives as `ClaimsLost`."""
        self._order(Publish(step, rows, going))

    def renew(self) -> None:
        """Renew the lease; what we hold arrives as `ClaimsHeld`."""
        self._order(Renew())

    def renew_if_due(self, every_s: float) -> None:
        """Renew when nothing was ordered for `every_s`."""
        if time.monotonic() - self._last_order_at >= every_s:
            self.renew()

    def has_space(self) -> bool:
        """Whether fewer than `MAX_QUEUED_STEPS` orders wait."""
        return self.num_queued < MAX_QUEUED_STEPS

    def wait_for_space(self, timeout_s: float) -> bool:
        """Hold the loop back while there is no space; whether there is now."""
        ends_at = time.monotonic() + timeout_s
        while not self.has_space():
            if time.monotonic() >= ends_at:
                return False
            time.sleep(LOOK_EVERY_S)
        return True

    def leave(self, timeout_s: float) -> None:
        """Carry out what is ordered, give back all claims, end the lease. Gives up after `timeout_s`."""
        self._order(Leave(timeout_s))
        ends_at = time.monotonic() + timeout_s + 2 * transport.SOCKET_TIMEOUT_S
        while time.monotonic() < ends_at:
            deque(self.news(), maxlen=0)  # it must not wait for us to read
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LOOK_EVERY_S)
                return
        self._process.kill()
        self._process.wait()

    def _order(self, order: Claim | Publish | Renew | Leave) -> None:
        """What the courier counts when it is done."""
        self._num_ordered += 1
        self._last_order_at = time.monotonic()
        self._send(order)

    def _send(self, order: Order) -> None:
        """That the process is gone is told by `news`."""
        try:
            self._channel.send(order)
        except OSError as error:
            logger.error("the courier takes no orders: %s", error)


# --- the child


class _Output(NamedTuple):
    """A held request's gateway and all of its output so far."""

    gateway: str
    tokens: list[int]


class _Outputs(Receiver):
    """The requests that are held, by id and attempt, with their output, for corrections; news pass through here."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._held: dict[tuple[str, int], _Output] = {}

    def put(self, news: News) -> None:
        """Called by the courier's thread and the follower's."""
        match news:
            case ClaimsSettled(_, won):
                for one in won:
                    request_id, attempt = one.header.request_id, one.header.attempt
                    for before in range(attempt):  # of a claim that lapsed
                        self._held.pop((request_id, before), None)
                    output = _Output(one.header.gateway, unpack(one.token_ids).tolist())
                    self._held[request_id, attempt] = output
                self._channel.send(news)
            case ClaimsLost(attempts):
                for lost in attempts.items():
                    self._held.pop(lost, None)
                self._channel.send(news)
            case ClaimsHeld(attempts):
                for gone in list(self._held.keys() - attempts.items()):
                    self._held.pop(gone, None)
                self._channel.send(news)
            case ThreadFailed(name, error):
                self._channel.send(Failure(name, f"{type(error).__name__}: {error}"))
            case QueueChanged() | QueueMirrored() | PolicyNews():
                self._channel.send(news)

    def outgoing(self, order: Publish) -> list[OutgoingRow]:
        """A step's rows with all output of their requests so far; what is no longer held has none. Called by the main
        thread."""
        going, found = order.going, list[OutgoingRow]()
        for request_id, attempt, token_id in zip(going.request_ids, going.attempts, going.token_ids, strict=True):
            output = self._held.get((request_id, attempt))
            if output is not None:
                gateway, tokens = output
                row = FrameRow(request_id=request_id, attempt=attempt, offset=len(tokens), token_ids=(token_id,))
                tokens.append(token_id)
                found.append(OutgoingRow(gateway, row, tokens))
        found += [one for row in order.rows if (one := self._outgoing(row)) is not None]
        return found

    def _outgoing(self, row: FrameRow) -> OutgoingRow | None:
        key = row.request_id, row.attempt
        output = self._held.pop(key, None) if row.finish else self._held.get(key)
        if output is None:
            return None
        gateway, tokens = output
        row = msgspec.structs.replace(row, offset=len(tokens))
        tokens.extend(row.token_ids)
        return OutgoingRow(gateway, row, tokens)


def main(socket_fd: int, memory_fd: int) -> None:
    """Carry out orders until told to leave, or until the parent is gone."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # they are the parent's to answer
    sys.setswitchinterval(SWITCH_EVERY_S)
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
    follower = Follower(transport.connect(task.redis_url), outputs, task.pool)
    for order in orders:
        match order:
            case Follow():
                follower.start()
            case Claim(request_ids):
                courier.claim(request_ids)
            case Publish():
                courier.publish(order.step, outputs.outgoing(order))
            case Renew():
                courier.renew()
            case Leave(timeout_s):
                follower.stop()
                courier.leave(timeout_s)
                return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)  # its threads may still wait for Redis
