"""The follower: reads the queue's changes as they happen and hands them on. It works in the courier's process."""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

import redis
from redis.exceptions import ResponseError

from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import PolicyAnnouncement, ProtocolError, decode
from scheduler_worker.protocol.scripts import Change, ChangeOp
from scheduler_worker.worker import transport
from scheduler_worker.worker.inbox import HelperThread, PolicyNews, QueueChanged, QueueMirrored, Receiver

logger = logging.getLogger(__name__)

BLOCK_MS: Final = 1000
MAX_ENTRIES: Final = 1000


class Follower(HelperThread):
    """Mirrors the queue at start, and again whenever changes may have been missed."""

    def __init__(self, client: redis.Redis, inbox: Receiver, pool: str) -> None:
        super().__init__("follower", inbox)
        self._client, self._pool = client, pool
        self._changes = keys.CHANGES.of(pool)
        self._cursor = ""
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End after the read under way."""
        self._stopping.set()

    def work(self) -> None:
        """Read until stopped."""
        while not self._stopping.is_set():
            try:
                transport.persist("the follower", self._follow, self._stopping)
            except transport.Stopped:
                return

    def _follow(self) -> None:
        """Read until stopped or cut off. After a cut entries may be gone: look before going on."""
        behind = True
        while not self._stopping.is_set():
            if behind and self._missed_entries():
                self._mirror()
            behind = self._read() == MAX_ENTRIES

    def _missed_entries(self) -> bool:
        if not self._cursor:
            return True
        try:
            info = self._client.xinfo_stream(self._changes)
        except ResponseError:  # no such key: nothing changed yet, or all was lost
            return self._cursor != "0-0"
        last, deleted = _entry_id(info["last-generated-id"]), _entry_id(info["max-deleted-entry-id"])
        return not deleted <= _entry_id(self._cursor) <= last

    def _mirror(self) -> None:
        mirror = transport.run(self._client, scripts.mirror(self._pool))
        for error in mirror.unreadable:
            logger.error("a waiting request is left to workers of another build: %s", error)
        self._inbox.put(QueueMirrored(mirror.headers, mirror.policy))
        self._cursor = mirror.last_change_id

    def _read(self) -> int:
        reply: Any = self._client.xread({self._changes: self._cursor}, count=MAX_ENTRIES, block=BLOCK_MS)
        entries = _entries(reply)
        queue: list[Change] = []
        for _, fields in entries:
            change = _change(fields)
            if change is None:
                continue
            if change.op is not ChangeOp.POLICY:
                queue.append(change)
                continue
            self._tell(queue)  # in their order: what follows may be of a class that this policy adds
            queue = []
            self._fetch_policy()
        self._tell(queue)
        if entries:
            self._cursor = entries[-1][0].decode()
        return len(entries)

    def _tell(self, changes: list[Change]) -> None:
        if changes:
            self._inbox.put(QueueChanged(tuple(changes)))

    def _fetch_policy(self) -> None:
        data: Any = self._client.get(keys.POLICY.of(self._pool))
        if data is None:
            return
        try:
            self._inbox.put(PolicyNews(decode(PolicyAnnouncement, data)))
        except ProtocolError as error:
            logger.error("a policy was announced that this build cannot read: %s", error)


def _change(fields: dict[bytes, bytes]) -> Change | None:
    try:
        return scripts.read_change(fields)
    except ProtocolError as error:
        logger.error("a change of the queue is left to workers of another build: %s", error)
        return None


def _entries(reply: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of the one stream read, as RESP2 (a list) or RESP3 (a map) has them."""
    if not reply:
        return []
    if isinstance(reply, dict):
        (batches,) = reply.values()
        return list(batches[0])
    return list(reply[0][1])


def _entry_id(value: bytes | str) -> tuple[int, int]:
    text = value.decode() if isinstance(value, bytes) else value
    milliseconds, number = text.split("-")
    return int(milliseconds), int(number)
