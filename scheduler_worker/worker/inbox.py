"""What helpers tell the step loop. Only the loop touches the scheduler and the executor."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from msgspec import Struct

from scheduler_worker.protocol.messages import Header, PolicyAnnouncement
from scheduler_worker.protocol.scripts import Change, Claimed


class ClaimsSettled(Struct, frozen=True, tag=True):
    """The answer to one claim: the `asked` that are not among `won` went elsewhere."""

    asked: tuple[str, ...]
    won: tuple[Claimed, ...]


class ClaimsLost(Struct, frozen=True, tag=True):
    """Requests, with their attempts, that another worker may hold by now."""

    attempts: dict[str, int]


class ClaimsHeld(Struct, frozen=True, tag=True):
    """All claims that Redis holds for us, with their attempts, as of the messages before this one."""

    attempts: dict[str, int]


class QueueChanged(Struct, frozen=True, tag=True):
    """What happened in the queue, in its order."""

    changes: tuple[Change, ...]


class QueueMirrored(Struct, frozen=True, tag=True):
    """The whole queue at one instant, and the live policy: changes may have been missed."""

    headers: tuple[Header, ...]
    policy: PolicyAnnouncement | None


class PolicyNews(Struct, frozen=True, tag=True):
    """The live policy."""

    announcement: PolicyAnnouncement


@dataclass(frozen=True, slots=True)
class DrainingChanged:
    """An operator asked this worker to take no more work, or to take it again."""

    draining: bool


@dataclass(frozen=True, slots=True)
class ThreadFailed:
    """A helper thread met an error that it was not made for; the worker ends."""

    name: str
    error: BaseException


QueueNews: TypeAlias = QueueChanged | QueueMirrored | PolicyNews
ClaimNews: TypeAlias = ClaimsSettled | ClaimsLost | ClaimsHeld
News: TypeAlias = QueueNews | ClaimNews | DrainingChanged | ThreadFailed


class Receiver(Protocol):
    """Whoever wants the news: the loop's inbox, or a way to another process."""

    def put(self, news: News) -> None: ...


class Inbox:
    """Messages in order of arrival, from the worker's own threads to its loop, which looks at least every 0.1 s."""

    def __init__(self) -> None:
        self._news: deque[News] = deque()

    def put(self, news: News) -> None:
        """Add a message."""
        self._news.append(news)

    def take(self) -> Iterator[News]:
        """Every message that is here now."""
        for _ in range(len(self._news)):
            yield self._news.popleft()


class HelperThread(threading.Thread):
    """A daemon thread whose unexpected end is the loop's to know."""

    def __init__(self, name: str, inbox: Receiver) -> None:
        super().__init__(name=name, daemon=True)
        self._inbox = inbox

    def run(self) -> None:
        """Work until stopped; any error but being stopped is reported."""
        try:
            self.work()
        except Exception as error:
            self._inbox.put(ThreadFailed(self.name, error))

    def work(self) -> None:
        """What the thread does."""
        raise NotImplementedError
