"""The core's `now` follows Redis's clock and never goes back."""

from __future__ import annotations

from scheduler_worker.worker.clock import RedisClock


class Hands:
    """A monotonic clock set by hand."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


def clock_at(redis_time: float) -> tuple[RedisClock, Hands]:
    hands = Hands()
    clock = RedisClock(hands)
    clock.adjust(redis_time, hands.at, hands.at)
    return clock, hands


def test_it_shows_redis_time_and_goes_on_from_there() -> None:
    clock, hands = clock_at(5000.0)
    hands.at += 2.5
    assert clock.now() == 5002.5


def test_half_of_the_way_to_redis_and_back_is_counted() -> None:
    hands = Hands()
    clock = RedisClock(hands)
    hands.at = 101.0
    clock.adjust(5000.0, sent=100.0, received=101.0)
    assert clock.now() == 5000.5


def test_a_step_forward_is_taken_at_once() -> None:
    clock, hands = clock_at(5000.0)
    clock.now()
    clock.adjust(6000.0, hands.at, hands.at)
    assert clock.now() == 6000.0


def test_after_a_step_back_it_runs_at_half_speed() -> None:
    clock, hands = clock_at(5000.0)
    clock.now()
    clock.adjust(4990.0, hands.at, hands.at)
    hands.at += 4.0
    assert clock.now() == 5002.0


def test_after_a_step_back_it_meets_redis_again() -> None:
    clock, hands = clock_at(5000.0)
    clock.now()
    clock.adjust(4990.0, hands.at, hands.at)
    hands.at += 20.0
    assert clock.now() == 5010.0
    hands.at += 1.0
    assert clock.now() == 5011.0
