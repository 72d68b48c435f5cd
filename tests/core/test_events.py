"""Whatever the core decides, it says why, with every number that the sentence for it prints."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from scheduler_worker.core.plan import Event, EventKind, Reason
from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.reasons import KINDS, SENTENCES, render
from tests.core.test_properties import LOADS, Load, serve
from tests.core.worlds import World, a_capacity, with_rules

ELSEWHERE = {"retry_after_s"}
"""Said by a door: a request that can never run is not asked to come back."""


class Asked(dict[str, float | int | str]):
    """Numbers that remember which of them were looked for in vain."""

    def __init__(self, event: Event) -> None:
        super().__init__(event.numbers)
        self.missing: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        if name not in self:
            self.missing.add(name)
        return super().get(name, default)  # type: ignore[arg-type]


def missing_in(event: Event) -> tuple[str, ...]:
    """Numbers that the sentence has a place for and the event does not bring."""
    numbers = Asked(event)
    sentence(event, numbers)
    waits = {"waited_s", "parked_s"} if {"waited_s", "parked_s"} & set(numbers) else set()
    return tuple(sorted(numbers.missing - ELSEWHERE - waits))


def sentence(event: Event, numbers: dict[str, float | int | str] | None = None) -> str:
    return render(
        EventRecord(
            at=event.at,
            kind=event.kind.value,
            reason=event.reason.value,
            request_id=event.seq_id,
            class_id=event.class_id,
            tenant=event.tenant,
            numbers=dict(event.numbers) if numbers is None else numbers,
        )
    )


def is_known(event: Event) -> bool:
    return (event.kind.value, event.reason.value) in SENTENCES or event.kind.value in KINDS


@settings(max_examples=60, deadline=None)
@given(LOADS)
def test_every_event_of_a_workload_has_a_sentence_and_all_its_numbers(load: Load) -> None:
    """Few slots and blocks, so that some yield and some lack room."""
    events = serve(load, num_slots=2, num_blocks=24).world.events
    assert [one for one in events if not is_known(one)] == []
    assert [(one.kind, one.reason, missing_in(one)) for one in events if missing_in(one)] == []


def a_world(num_tokens: int = 2) -> World:
    """One request that has made so many tokens."""
    world = World()
    world.add("one", max_tokens=20)
    while world.emitted.get("one", 0) < num_tokens:
        world.step()
    return world


def test_a_cancelled_request_is_told_with_its_tokens() -> None:
    world = a_world(num_tokens=3)
    (event,) = world.take(world.scheduler.cancel("one", world.now)).events
    assert (event.numbers["num_tokens"], sentence(event)) == (3, "Cancelled after 3 tokens.")


def test_tokens_still_on_their_way_are_not_told_of_a_cancelled_request() -> None:
    world = a_world(num_tokens=3)
    world.launch()
    (event,) = world.take(world.scheduler.cancel("one", world.now)).events
    assert event.numbers["num_tokens"] == 3


def test_a_requeued_request_is_told_with_the_tokens_it_goes_on_after() -> None:
    world = World()
    (event,) = world.add("one", attempt=1, num_generated_tokens=5).events
    assert (event.reason, event.numbers["num_tokens"]) == (Reason.REQUEUED, 5)
    assert sentence(event) == "Requeued: its worker's lease ran out; it goes on after 5 tokens."


def test_a_requeued_request_that_had_all_its_tokens_is_told_with_them() -> None:
    world = World()
    (event,) = world.add("one", attempt=1, num_generated_tokens=8, max_tokens=8).events
    assert (event.reason, sentence(event)) == (Reason.LENGTH, "Finished: it reached its limit of 8 tokens.")


def test_whoever_yields_for_want_of_memory_is_told_to_whom_and_of_which_class() -> None:
    """Four answers outgrow twelve blocks; the urgent one keeps its own."""
    policy = with_rules(default_policy(), memory={"reserve_growth": 0.0})
    world = World(policy=policy, capacity=a_capacity(num_slots=4, num_blocks=12))
    for number, class_id in enumerate(("high", "low", "low", "low")):
        world.add(f"r{number}", class_id, prompt=16, max_tokens=100)
    world.run()
    event = world.events_of(EventKind.PREEMPTED)[0]
    assert (event.reason, event.numbers["by"], event.numbers["by_class"]) == (
        Reason.PREEMPTED_BY_MEMORY, "r0", "high",
    )  # fmt: skip
    assert sentence(event).startswith("Preempted by memory: r0 (high) came first and no block was free")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "words"),
    [(0, 8, "the prompt is empty"), (1024, 8, "the context of 1024"), (1000, 24, "this worker has 8")],
)
def test_a_request_that_can_never_run_is_told_which_limit_it_exceeds(prompt: int, max_tokens: int, words: str) -> None:
    world = World(capacity=a_capacity(num_blocks=8))
    (event,) = world.add("one", prompt=prompt, max_tokens=max_tokens).events
    assert (event.kind, words in str(event.numbers["error"])) == (EventKind.REJECTED, True)
    assert words in sentence(event)


def test_the_batch_limit_is_told_with_the_latency_that_moved_it() -> None:
    """Steps of 200 ms against low's objective of 100 ms."""
    world = World(capacity=a_capacity(num_slots=16), checks=False)
    world.add("one", max_tokens=400)
    while not world.events_of(EventKind.BATCH_LIMIT_CHANGED):
        world.launch()
        world.land(duration_s=0.2)
    (event,) = world.events_of(EventKind.BATCH_LIMIT_CHANGED)
    assert sentence(event) == "Batch limit 16 → 12: ITL p99 averaged 200 ms, over the 83 ms target."


def test_whoever_leaves_a_batch_that_the_device_cannot_hold_is_told_so() -> None:
    world = World(capacity=a_capacity(num_slots=8), checks=False)
    for number in range(8):
        world.add(f"r{number}", max_tokens=40)
    for _ in range(4):
        world.launch()
        world.land()
    world.launch()
    events = world.take(world.scheduler.fail_step(world.now)).events
    parked = [one for one in events if one.kind is EventKind.PREEMPTED]
    assert parked
    assert [one for one in events if not is_known(one) or missing_in(one)] == []
    assert sentence(parked[0]).startswith("Preempted: the device had no memory for a step of so many")
