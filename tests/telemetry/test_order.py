"""The order in which two gateways' messages arrive makes no difference."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler_worker.protocol.messages import GatewayTelemetry, LatencySample
from tests.telemetry.builders import ended, event, first, fold, gateway, seen, worker

instants = st.integers(0, 400).map(lambda quarter: quarter / 4)
latencies = st.sampled_from([0.01, 0.05, 0.099, 0.1, 0.101, 0.5, 2.0])
classes = st.sampled_from(["high", "low"])


@st.composite
def samples(draw: st.DrawFn, at: float) -> dict[str, Any]:
    def some(make: Any) -> tuple[LatencySample, ...]:
        drawn = draw(st.lists(st.tuples(latencies, classes), max_size=4))
        return tuple(make(at, value, class_id) for value, class_id in drawn)

    return {
        "first_tokens": some(lambda at, value, class_id: first(at, value, class_id)),
        "finished": some(lambda at, value, class_id: ended(at, value, value / 5, class_id)),
    }


@st.composite
def messages(draw: st.DrawFn, name: str) -> list[GatewayTelemetry]:
    made = []
    for at in sorted(draw(st.lists(instants, unique=True, max_size=12))):
        refused = {"low": 1} if draw(st.booleans()) else {}
        events = (event(at, "rejected", "queue_full", "low", request_id=f"{name}{at}"),) if refused else ()
        made.append(gateway(at, name, refused=refused, events=events, **draw(samples(at))))
    return made


@given(messages("web-1"), messages("web-2"), st.randoms(use_true_random=False))
def test_two_gateways_messages_may_interleave_as_they_like(
    one: list[GatewayTelemetry], other: list[GatewayTelemetry], random: Any
) -> None:
    in_time, shuffled = fold(), fold()
    both = sorted(one + other, key=lambda message: (message.at, message.gateway))
    for message in both:
        in_time.take(message)
    for message in random.sample(both, len(both)):
        shuffled.take(message)
    for each in (in_time, shuffled):
        each.take(worker(110))
        each.tick(worker(115).at)
    assert (seen(shuffled, 115), shuffled.points) == (seen(in_time, 115), in_time.points)
