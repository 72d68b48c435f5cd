"""What every mirror of the queue tells is told once."""

from __future__ import annotations

from scheduler_worker.protocol.mirrors import FirstOfMirrors


def test_only_the_first_who_tells_a_miss_is_heard() -> None:
    mirrors = FirstOfMirrors()
    assert [mirrors.is_news("bound_missed", "r", {"waited_s": 30.0}) for _ in range(3)] == [True, False, False]


def test_misses_of_other_requests_are_news() -> None:
    mirrors = FirstOfMirrors()
    assert [mirrors.is_news("bound_missed", one, {"waited_s": 30.0}) for one in ("a", "b")] == [True, True]


def test_what_its_holder_alone_knows_is_always_news() -> None:
    mirrors = FirstOfMirrors()
    told = [("bound_missed", {"waited_s": 30.0}), ("bound_missed", {"parked_s": 30.0}), ("resumed", {})]
    assert [mirrors.is_news(kind, "r", numbers) for kind, numbers in told] == [True, True, True]


def test_the_oldest_is_forgotten_beyond_what_is_remembered() -> None:
    mirrors = FirstOfMirrors(max_remembered=2)
    told = [mirrors.is_news("bound_missed", one, {"waited_s": 30.0}) for one in ("a", "b", "c", "c", "a")]
    assert told == [True, True, True, False, True]
