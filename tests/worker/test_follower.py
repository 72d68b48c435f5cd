"""The follower hands on what happened in the order in which it happened."""

from __future__ import annotations

from scheduler_worker.worker import transport
from scheduler_worker.worker.follower import Follower
from scheduler_worker.worker.inbox import News, PolicyNews, QueueChanged
from tests.worker.fleet import Client
from tests.worker.test_processes import prompt


class Noted:
    def __init__(self) -> None:
        self.news: list[News] = []

    def put(self, news: News) -> None:
        self.news.append(news)


def test_requests_stay_before_or_behind_a_policy_that_is_read_with_them(redis_url: str) -> None:
    """One read of everything: a request of a class that the policy adds must not come before it."""
    client, noted = Client(redis_url, "ordered"), Noted()
    client.send("before", prompt(1))
    client.publish_policy(1)
    client.send("behind", prompt(2))
    client.send("last", prompt(3))
    follower = Follower(transport.connect(redis_url), noted, "ordered")
    follower._cursor = "0-0"
    follower._read()

    told = [
        [one.id for one in news.changes] if isinstance(news, QueueChanged) else type(news) for news in noted.news
    ]
    assert told == [["before"], PolicyNews, ["behind", "last"]]
