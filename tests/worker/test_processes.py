"""Worker processes on one Valkey: what clients receive while workers die, hang, drain and change policy."""

from __future__ import annotations

import signal

import pytest

from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import PolicyAnnouncement, SamplingParams
from tests.worker.fake_executor import BAD_TOKEN, POISON_TOKEN, continuation
from tests.worker.fleet import POOL, Fleet, wait_until


def prompt(number: int, num_tokens: int = 20) -> list[int]:
    return [(number * 131 + position) % 1000 + 1 for position in range(num_tokens)]


def test_a_request_streams_back_its_tokens(fleet: Fleet) -> None:
    fleet.start("w1")
    fleet.client.send("a", prompt(1), max_tokens=12)
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 12)


@pytest.mark.parametrize("depth", [1, 2])
def test_many_requests_on_two_workers_are_each_answered_once_and_in_order(fleet: Fleet, depth: int) -> None:
    fleet.start("w1", step_s=0.002, num_slots=4, max_in_flight_steps=depth)
    fleet.start("w2", step_s=0.002, num_slots=4, max_in_flight_steps=depth)
    for number in range(40):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=80 + number % 7)
    fleet.client.wait_for_end()
    wanted = {f"r{number}": continuation(prompt(number), 80 + number % 7) for number in range(40)}
    assert {one: output.tokens for one, output in fleet.client.outputs.items()} == wanted
    assert fleet.client.faults() == {}
    assert {output.workers[0] for output in fleet.client.outputs.values()} == {"w1", "w2"}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_killed_worker_loses_and_doubles_no_token(fleet: Fleet, depth: int) -> None:
    victim = fleet.start("w1", step_s=0.02, max_in_flight_steps=depth)
    for number in range(6):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=400)
    fleet.client.wait_for_tokens("r5", 5)
    fleet.start("w2", step_s=0.002, max_in_flight_steps=depth)
    victim.signal(signal.SIGKILL)
    fleet.client.wait_for_end()
    assert {one.attempt for one in fleet.client.outputs.values()} == {1}
    assert [one.tokens for one in fleet.client.outputs.values()] == [
        continuation(prompt(number), 400) for number in range(6)
    ]
    assert fleet.client.faults() == {}


def test_a_hung_worker_publishes_nothing_once_others_took_over(fleet: Fleet) -> None:
    hung = fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=200)
    fleet.client.wait_for_tokens("a", 5)
    hung.signal(signal.SIGSTOP)
    fleet.start("w2", step_s=0.02)
    wait_until(lambda: fleet.client.read() or fleet.client.outputs["a"].attempt == 1, "requeued")
    fleet.client.wait_for_tokens("a", fleet.client.num_tokens("a") + 3)
    hung.signal(signal.SIGCONT)
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 200)
    assert fleet.client.faults() == {}


def test_a_worker_that_hung_serves_again(fleet: Fleet) -> None:
    hung = fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=100)
    fleet.client.wait_for_tokens("a", 5)
    hung.signal(signal.SIGSTOP)
    wait_until(lambda: _lease_is_over(fleet, "w1"), "the lease is over")
    hung.signal(signal.SIGCONT)
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 100)
    assert fleet.client.faults() == {}


def _lease_is_over(fleet: Fleet, worker: str) -> bool:
    ends_at = fleet.client.redis.zscore(keys.WORKER_LEASES.of(POOL), worker)
    return ends_at is not None and float(ends_at) < fleet.client.now()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_draining_worker_gives_everything_to_the_next(fleet: Fleet, depth: int) -> None:
    leaving = fleet.start("w1", step_s=0.02, max_in_flight_steps=depth)
    for number in range(4):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=80)
    fleet.client.wait_for_tokens("r3", 5)
    leaving.signal(signal.SIGTERM)
    assert leaving.wait() == 0
    fleet.start("w2", step_s=0.002, max_in_flight_steps=depth)
    fleet.client.wait_for_end()
    assert [one.tokens for one in fleet.client.outputs.values()] == [
        continuation(prompt(number), 80) for number in range(4)
    ]
    assert fleet.client.faults() == {}


def test_a_drained_worker_leaves_no_claim_lease_or_key(fleet: Fleet) -> None:
    leaving = fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=80)
    fleet.client.wait_for_tokens("a", 3)
    leaving.signal(signal.SIGTERM)
    leaving.wait()
    names = (keys.CLAIMS.of(POOL), keys.CLAIMED_BY.of(POOL, "w1"), keys.WORKER_LEASES.of(POOL))
    assert fleet.client.redis.exists(*names, keys.WORKER_INFO.of(POOL, "w1")) == 0


def test_an_operators_drain_lets_running_requests_end_and_takes_no_more(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=80)
    fleet.client.wait_for_tokens("a", 3)
    fleet.client.redis.set(keys.WORKER_CONTROL.of(POOL, "w1"), "drain")
    wait_until(lambda: (info := fleet.client.info("w1")) and info.draining, "draining")
    fleet.client.send("b", prompt(2))
    fleet.client.wait_for_end("a")
    assert (fleet.client.outputs["a"].attempt, fleet.client.num_tokens("b")) == (0, 0)


def test_a_cancelled_request_ends_within_a_step(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.05)
    fleet.client.send("a", prompt(1), max_tokens=500)
    fleet.client.wait_for_tokens("a", 3)
    fleet.client.cancel("a")
    before = fleet.client.num_tokens("a")
    fleet.client.wait_for_end("a")
    output = fleet.client.outputs["a"]
    assert (output.finish, len(output.tokens) - before <= 1, output.faults) == ("cancelled", True, [])


def test_a_new_policy_runs_within_a_second_and_loses_no_sequence(fleet: Fleet) -> None:
    fleet.client.publish_policy(1)
    fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=100)
    fleet.client.wait_for_tokens("a", 3)
    changed = default_policy()
    published_at = fleet.client.now()
    fleet.client.publish_policy(2, changed.model_copy(update={"default_class": "high"}))
    seen = wait_until(lambda: [t for t in fleet.client.telemetry() if t.policy_version == 2], "version 2")
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 100)
    assert seen[0].at - published_at < 1.0


def test_a_policy_that_cannot_be_read_leaves_the_one_before(fleet: Fleet) -> None:
    fleet.client.publish_policy(1)
    worker = fleet.start("w1")
    fleet.client.run(_announcement(2, '{"classes": []}'))
    fleet.client.send("a", prompt(1), max_tokens=4)
    fleet.client.wait_for_end()
    assert fleet.client.telemetry()[-1].policy_version == 1
    assert "policy v2 cannot be used" in worker.log.read_text()


def _announcement(version: int, document: str) -> scripts.Call[bool]:
    return scripts.announce_policy(
        POOL, PolicyAnnouncement(version=version, document=document, published_at=1.0)
    )


def test_a_bad_request_fails_alone(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.005)
    fleet.client.send("good", prompt(1), max_tokens=40)
    fleet.client.send("bad", [1, BAD_TOKEN, 3])
    fleet.client.wait_for_end()
    ends = {one: (output.finish, output.error) for one, output in fleet.client.outputs.items()}
    assert ends == {"good": ("length", ""), "bad": ("failed", "a token is outside the vocabulary")}


def test_a_request_of_an_unknown_class_fails_with_the_reason(fleet: Fleet) -> None:
    fleet.start("w1")
    fleet.client.send("a", prompt(1), class_id="nosuch")
    fleet.client.wait_for_end()
    output = fleet.client.outputs["a"]
    assert (output.finish, output.error) == ("failed", "class nosuch is not in the policy")


def test_a_request_longer_than_the_context_fails_with_the_reason(fleet: Fleet) -> None:
    fleet.start("w1", max_model_len=64)
    fleet.client.send("a", prompt(1, 100))
    fleet.client.wait_for_end()
    output = fleet.client.outputs["a"]
    assert output.finish == "failed"
    assert "64" in output.error


def test_a_request_whose_prompt_expired_fails_with_the_reason(fleet: Fleet) -> None:
    fleet.client.send("a", prompt(1))
    fleet.client.redis.delete(keys.PAYLOAD.of(POOL, "a"))
    fleet.start("w1")
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].error == "its prompt is no longer stored"


def test_out_of_memory_shrinks_the_batch_and_answers_everyone(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.002, num_slots=8, max_rows=3)
    for number in range(8):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=10)
    fleet.client.wait_for_end()
    assert [one.tokens for one in fleet.client.outputs.values()] == [
        continuation(prompt(number), 10) for number in range(8)
    ]


def test_a_defect_ends_the_worker_loudly_and_gives_its_requests_back(fleet: Fleet) -> None:
    worker = fleet.start("w1", step_s=0.02)
    fleet.client.send("good", prompt(1), max_tokens=200)
    fleet.client.wait_for_tokens("good", 3)
    fleet.client.send("poison", [1, POISON_TOKEN, 3])
    assert worker.wait() == 1
    fleet.client.read()
    assert fleet.client.outputs["good"].attempt == 1
    (last,) = [
        event for one in fleet.client.telemetry() for event in one.events if event.kind == "worker_failed"
    ]
    assert last.numbers["error"] == "ZeroDivisionError: a defect of the executor"


def test_a_restarted_worker_of_the_same_name_takes_up_its_work(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.02).signal(signal.SIGKILL)
    fleet.client.redis.delete(keys.WORKER_INFO.of(POOL, "w1"))
    fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=60)
    fleet.client.wait_for_tokens("a", 3)
    fleet.workers[-1].signal(signal.SIGKILL)
    fleet.workers[-1].wait()
    fleet.client.redis.delete(keys.WORKER_INFO.of(POOL, "w1"))
    fleet.start("w1")
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 60)
    assert fleet.client.faults() == {}


def test_a_stop_token_ends_the_request(fleet: Fleet) -> None:
    fleet.start("w1")
    wanted = continuation(prompt(1), 5)
    sampling = SamplingParams(temperature=0.0, max_tokens=50, stop_token_ids=(wanted[-1],))
    fleet.client.send("a", prompt(1), max_tokens=50, sampling=sampling)
    fleet.client.wait_for_end()
    output = fleet.client.outputs["a"]
    assert (output.tokens, output.finish) == (wanted, "stop")


def test_the_breakdown_of_a_request_comes_with_its_end(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.01)
    fleet.client.send("a", prompt(1), max_tokens=10)
    fleet.client.wait_for_end()
    last = fleet.client.outputs["a"].last
    assert last is not None
    assert last.timings is not None
    assert (last.timings.queue_s or 0) + (last.timings.formation_s or 0) > 0
