"""The courier: carries claims and tokens to Redis, in order, beside the step loop.

One thread and one connection, so that the loop's orders take effect in their order. Every order
is idempotent and repeated through outages; the loop is held back when too many wait. The lease is renewed by
orders only, and so only by the loop's progress.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Final, NamedTuple

import msgspec
import redis

from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import Frame, FrameRow
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.inbox import ClaimsHeld, ClaimsLost, ClaimsSettled, HelperThread, Inbox

MAX_QUEUED_STEPS: Final = 4
_NEVER: Final = float("-inf")


class OutgoingRow(NamedTuple):
    """A row of a step for `gateway`. `tokens` is the sequence's whole output so far, to which the loop only
    appends: from there the courier fills in what Redis turns out to lack."""

    gateway: str
    row: FrameRow
    tokens: Sequence[int]


class Courier(HelperThread):
    """Orders go in from the loop; what became of them goes to the inbox."""

    def __init__(
        self, client: redis.Redis, clock: RedisClock, inbox: Inbox, pool: str, worker: str, lease_s: float
    ) -> None:
        super().__init__("courier", inbox)
        self._client, self._clock = client, clock
        self._pool, self._worker, self._lease_s = pool, worker, lease_s
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_ordered = self._num_done = 0
        self._space = threading.Event()
        self._give_up = threading.Event()
        self._last_order_at = _NEVER
        self.lease_ends_at = _NEVER
        """Monotonic instant until which the lease surely lasts."""

    def claim(self, request_ids: tuple[str, ...]) -> None:
        """Try to take these; the outcome arrives as `ClaimsSettled`."""
        self._order(lambda: self._claim(request_ids))

    def publish(self, step: int, rows: list[OutgoingRow]) -> None:
        """Send a step's rows; what is no longer ours arrives as `ClaimsLost`."""
        self._order(lambda: self._publish(step, rows))

    def renew(self) -> None:
        """Renew the lease; what we hold arrives as `ClaimsHeld`."""
        self._order(self._renew)

    def renew_if_due(self, every_s: float) -> None:
        """Renew when nothing was ordered for `every_s`."""
        if time.monotonic() - self._last_order_at >= every_s:
            self.renew()

    @property
    def num_queued(self) -> int:
        """Orders not yet carried out."""
        return self._num_ordered - self._num_done

    def wait_for_space(self, timeout_s: float) -> bool:
        """Hold the loop back while `MAX_QUEUED_STEPS` orders wait; whether there is room now."""
        if self.num_queued < MAX_QUEUED_STEPS:
            return True
        self._space.clear()
        if self.num_queued >= MAX_QUEUED_STEPS:
            self._space.wait(timeout_s)
        return self.num_queued < MAX_QUEUED_STEPS

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
            self._space.set()

    def _order(self, order: Callable[[], None]) -> None:
        self._num_ordered += 1
        self._last_order_at = time.monotonic()
        self._orders.put(order)

    def _run(self, call: scripts.Call[scripts.T]) -> scripts.T:
        """Through outages. The lease counts from the last time that the script was sent."""

        def once() -> tuple[float, scripts.T]:
            return time.monotonic(), transport.run(self._client, call)

        sent_at, reply = transport.persist("the courier", once, self._give_up)
        self.lease_ends_at = sent_at + self._lease_s
        return reply

    def _claim(self, request_ids: tuple[str, ...]) -> None:
        won = self._run(scripts.claim(self._pool, self._worker, request_ids, self._lease_s))
        self._inbox.put(ClaimsSettled(request_ids, won))

    def _renew(self) -> None:
        self._inbox.put(ClaimsHeld(self._run(scripts.renew(self._pool, self._worker, self._lease_s))))

    def _retire(self) -> None:
        self._run(scripts.retire(self._pool, self._worker))
        self.lease_ends_at = _NEVER

    def _publish(self, step: int, rows: list[OutgoingRow]) -> None:
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
