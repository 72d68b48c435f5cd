"""The courier: carries claims and tokens to Redis, in order.

One thread and one connection, so that the loop's orders take effect in their order. Every order is idempotent and
repeated through outages. The lease is renewed by orders only, and so only by the loop's progress. It works in a
process of its own (`courier_process`), where it takes no time from the loop.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Final, NamedTuple

import msgspec
import redis

from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import Frame, FrameRow
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.inbox import ClaimsHeld, ClaimsLost, ClaimsSettled, HelperThread, Receiver

SYNCHRONIZE_EVERY_S: Final = 1.0
_NEVER: Final = float("-inf")


class OutgoingRow(NamedTuple):
    """A row of a step for `gateway`. `tokens` is the sequence's whole output so far, which only grows: from there
    the courier fills in what Redis turns out to lack."""

    gateway: str
    row: FrameRow
    tokens: Sequence[int]


class Courier(HelperThread):
    """Orders go in; what became of them goes to the inbox. `on_progress` learns, after each order, how many are
    done and the monotonic instant until which the lease surely lasts."""

    def __init__(
        self,
        client: redis.Redis,
        clock: RedisClock,
        inbox: Receiver,
        pool: str,
        worker: str,
        lease_s: float,
        on_progress: Callable[[int, float], None],
    ) -> None:
        super().__init__("courier", inbox)
        self._client, self._clock = client, clock
        self._pool, self._worker, self._lease_s = pool, worker, lease_s
        self._on_progress = on_progress
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_done = 0
        self._give_up = threading.Event()
        self._lease_ends_at = _NEVER
        self._synchronize_at = _NEVER

    def claim(self, request_ids: tuple[str, ...]) -> None:
        """Try to take these; the outcome arrives as `ClaimsSettled`."""
        self._order(lambda: self._claim(request_ids))

    def publish(self, step: int, rows: list[OutgoingRow]) -> None:
        """Send a step's rows; what is no longer ours arrives as `ClaimsLost`."""
        self._order(lambda: self._publish(step, rows))

    def renew(self) -> None:
        """Renew the lease; what we hold arrives as `ClaimsHeld`."""
        self._order(self._renew)

    def leave(self, timeout_s: float) -> None:
        """Carry out what is ordered, give back all claims, end the lease. Gives up after `timeout_s`."""
        self._order(self._retire)
        self._orders.put(None)
        self.join(timeout_s)
        self._give_up.set()
        self.join(transport.SOCKET_TIMEOUT_S)

    def work(self) -> None:
        """Carry out orders until told to leave."""
        while (order := self._orders.get()) is not None:
            try:
                order()
            except transport.Stopped:
                return
            self._num_done += 1
            self._on_progress(self._num_done, self._lease_ends_at)

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.put(order)

    def _run(self, call: scripts.Call[scripts.T]) -> scripts.T:
        """Through outages. The lease counts from the last time that the script was sent."""

        def once() -> tuple[float, scripts.T]:
            self._keep_time()
            return time.monotonic(), transport.run(self._client, call)

        sent_at, reply = transport.persist("the courier", once, self._give_up)
        self._lease_ends_at = sent_at + self._lease_s
        return reply

    def _keep_time(self) -> None:
        if time.monotonic() >= self._synchronize_at:
            transport.synchronize(self._client, self._clock)
            self._synchronize_at = time.monotonic() + SYNCHRONIZE_EVERY_S

    def _claim(self, request_ids: tuple[str, ...]) -> None:
        won = self._run(scripts.claim(self._pool, self._worker, request_ids, self._lease_s))
        self._inbox.put(ClaimsSettled(request_ids, won))

    def _renew(self) -> None:
        self._inbox.put(ClaimsHeld(self._run(scripts.renew(self._pool, self._worker, self._lease_s))))

    def _retire(self) -> None:
        self._run(scripts.retire(self._pool, self._worker))
        self._lease_ends_at = _NEVER

    def _publish(self, step: int, rows: list[OutgoingRow]) -> None:
        for each_once in apart(rows):
            self._publish_once(step, each_once)

    def _publish_once(self, step: int, rows: list[OutgoingRow]) -> None:
        while rows:
            frames = self._frames(step, rows)
            outcome = self._run(scripts.publish(self._pool, self._worker, self._lease_s, frames))
            if outcome.done:
                return
            self._report_lost(rows, outcome.lost)
            rows = list(corrected(rows, outcome))

    def _frames(self, step: int, rows: list[OutgoingRow]) -> dict[str, Frame]:
        by_gateway: defaultdict[str, list[FrameRow]] = defaultdict(list)
        for one in rows:
            by_gateway[one.gateway].append(one.row)
        now = self._clock.now()
        return {
            gateway: Frame(worker=self._worker, step=step, published_at=now, rows=tuple(of_gateway))
            for gateway, of_gateway in by_gateway.items()
        }

    def _report_lost(self, rows: list[OutgoingRow], lost: tuple[str, ...]) -> None:
        if lost:
            gone = set(lost)
            attempts = {one.row.request_id: one.row.attempt for one in rows if one.row.request_id in gone}
            self._inbox.put(ClaimsLost(attempts))


def apart(rows: list[OutgoingRow]) -> Iterator[list[OutgoingRow]]:
    """The rows in their order, in as many lists as it takes that none has a request twice: Redis compares every row
    with what it had before them all."""
    while rows:
        seen: set[str] = set()
        first: list[OutgoingRow] = []
        later: list[OutgoingRow] = []
        for one in rows:
            (later if one.row.request_id in seen else first).append(one)
            seen.add(one.row.request_id)
        yield first
        rows = later


def corrected(rows: Iterable[OutgoingRow], outcome: scripts.Published) -> Iterable[OutgoingRow]:
    """The rows to send after a refusal: lost ones left out, the others beginning where Redis ends."""
    lost = set(outcome.lost)
    for one in rows:
        request_id = one.row.request_id
        if request_id in lost:
            continue
        if request_id not in outcome.stored:
            yield one
        elif (moved := _starting_at(one, outcome.stored[request_id])) is not None:
            yield moved


def _starting_at(one: OutgoingRow, offset: int) -> OutgoingRow | None:
    """The row with the tokens from `offset` on; None when nothing is left to say."""
    row = one.row
    end = row.offset + len(row.token_ids)
    if offset >= end and not row.finish:
        return None
    logprobs = row.logprobs[offset - row.offset :] if offset >= row.offset else ()
    tokens = tuple(one.tokens[offset:end])
    changed = msgspec.structs.replace(row, offset=min(offset, end), token_ids=tokens, logprobs=logprobs)
    return OutgoingRow(one.gateway, changed, one.tokens)
