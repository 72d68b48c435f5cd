"""What operators see of a worker."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import pytest

from scheduler_worker.core.plan import SequenceView, TenantService
from scheduler_worker.core.policy import Policy, default_policy
from scheduler_worker.core.sequence import SequenceState
from scheduler_worker.executor import ExecutorInfo
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import WorkerTelemetry
from scheduler_worker.worker.device import CpuMeter, meter_for
from scheduler_worker.worker.reporter import percentile, running_row
from scheduler_worker.worker.stats import RecentService
from tests.worker.fleet import Fleet, wait_until
from tests.worker.test_processes import prompt


def view(state: SequenceState, num_computed: int, num_generated: int) -> SequenceView:
    return SequenceView(
        seq_id="a",
        class_id="high",
        tenant="acme",
        state=state,
        arrived_at=1.0,
        num_prompt_tokens=100,
        num_computed_tokens=num_computed,
        num_generated_tokens=num_generated,
        num_blocks=7,
        first_token_late=False,
    )


@pytest.mark.parametrize(
    ("state", "num_computed", "num_generated", "shown"),
    [
        (SequenceState.RUNNING, 0, 0, "prefill"),
        (SequenceState.RUNNING, 64, 0, "prefill"),
        (SequenceState.RUNNING, 100, 1, "decode"),
        (SequenceState.RUNNING, 64, 30, "prefill"),
        (SequenceState.PARKED, 100, 1, "parked"),
    ],
)
def test_a_sequence_is_shown_by_what_it_does(
    state: SequenceState, num_computed: int, num_generated: int, shown: str
) -> None:
    assert running_row(view(state, num_computed, num_generated)).state == shown


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (1, 1)])
def test_percentiles_are_of_the_nearest_rank(percent: int, value: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_no_step_has_no_percentile() -> None:
    assert percentile([], 99) is None


def test_energy_of_a_cpu_is_marked_as_an_estimate_and_counts_up() -> None:
    meter = meter_for(ExecutorInfo("m", "cpu", "a processor", "float32", "sdpa", 1, 1, 1), cpu_tdp_w=100.0)
    assert isinstance(meter, CpuMeter)
    first, second = meter.read(), meter.read()
    assert second.energy_estimated
    assert (second.energy_j or 0) >= (first.energy_j or 0)


def decoding(told: WorkerTelemetry) -> int:
    return sum(row.num_generated_tokens > 0 for row in told.rows)


def while_two_wait(fleet: Fleet) -> WorkerTelemetry:
    """The last message of two rows decoding and two requests waiting, however late this test looks."""

    def full() -> list[WorkerTelemetry]:
        told = fleet.client.telemetry()
        return [t for t in told if decoding(t) == 2 and sum(one.num_waiting for one in t.classes) == 2]

    return wait_until(full, "two rows and two that wait")[-1]


def test_a_busy_worker_reports_its_rows_classes_and_tokens(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.02, num_slots=2)
    for number in range(4):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=100)
    fleet.client.wait_for_tokens("r0", 30)
    shown = while_two_wait(fleet)
    (load,) = [one for one in shown.classes if one.class_id == "high"]
    assert (load.num_running, load.num_waiting, {row.state for row in shown.rows}) == (2, 2, {"decode"})
    assert shown.num_generated_tokens["high"] == 2 * shown.num_steps


def served(**tokens: float) -> dict[str, TenantService]:
    return {tenant: TenantService(num, 1.0, True) for tenant, num in tokens.items()}


def test_what_a_tenant_was_served_is_of_the_last_minute() -> None:
    recent = RecentService()
    for at, tokens in ((0.0, 100.0), (30.0, 250.0), (61.0, 300.0)):
        recent.read(served(a=tokens), at)
    assert recent.tokens["a"] == 200.0  # the first 100 came before


def test_a_forgotten_account_starts_over() -> None:
    recent = RecentService()
    recent.read(served(a=100.0), 0.0)
    recent.read({}, 1.0)
    recent.read(served(a=5.0, b=7.0), 2.0)
    assert dict(recent.tokens) == {"a": 105.0, "b": 7.0}


def test_a_minute_without_service_leaves_nothing() -> None:
    recent = RecentService()
    recent.read(served(a=0.1), 0.0)
    recent.read(served(a=0.3), 1.0)
    recent.read(served(a=0.3), 62.0)
    assert not recent.tokens


def test_a_worker_says_who_waits_and_why(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.02, num_slots=2)
    for number in range(4):
        fleet.client.send(f"r{number}", prompt(number), max_tokens=400, tenant="ab"[number % 2])
        if number < 2:  # both slots are taken before others come, one by each tenant
            fleet.client.wait_for_tokens(f"r{number}", 1)
    shown = while_two_wait(fleet)
    (load,) = [one for one in shown.classes if one.class_id == "high"]
    told = {one.tenant: (one.num_waiting, one.num_running, one.share_due) for one in load.tenants}
    assert told == dict.fromkeys("ab", (1, 1, 0.5))
    reasons = {one.reason for one in load.tenants}
    assert "all_slots" in reasons <= {"all_slots", "claimed"}  # claimed: it became urgent while slots were free
    assert sum(one.recent_tokens for one in load.tenants) == load.recent_tokens > 0


def test_a_draining_worker_gives_that_as_the_reason(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.02, num_slots=1)
    fleet.client.send("a", prompt(1), max_tokens=400)
    fleet.client.wait_for_tokens("a", 5)
    fleet.client.redis.set(keys.WORKER_CONTROL.of(fleet.client.pool, "w1"), keys.DRAIN)
    fleet.client.send("b", prompt(2), max_tokens=4)
    reasons = wait_until(
        lambda: [
            one.reason
            for message in fleet.client.telemetry()[-1:]
            for load in message.classes
            for one in load.tenants
            if one.reason == "draining"
        ],
        "the reason",
    )
    assert reasons == ["draining"]


def test_the_tokens_of_all_messages_add_up(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.01)
    for number in range(3):
        fleet.client.send(f"r{number}", prompt(number, 20), max_tokens=70)
    fleet.client.wait_for_end()
    counted = wait_until(
        lambda: (
            (all_of := fleet.client.telemetry())
            and sum(one.num_generated_tokens.get("high", 0) for one in all_of) >= 210
            and all_of
        ),
        "the last message",
    )
    assert sum(one.num_generated_tokens.get("high", 0) for one in counted) == 210
    assert sum(one.num_prompt_tokens for one in counted) == 60


def test_an_idle_worker_goes_on_speaking(fleet: Fleet) -> None:
    fleet.start("w1")
    messages = wait_until(lambda: len(found := fleet.client.telemetry()) >= 5 and found, "five messages")
    gaps = [later.at - earlier.at for earlier, later in pairwise(messages)]
    assert median(gaps) < 2.0  # one may be longer where the machine stands still
    assert [one.sequence for one in messages] == list(range(len(messages)))


def decisions_about(fleet: Fleet, request_id: str) -> list[tuple[str, str]]:
    events = [event for message in fleet.client.telemetry() for event in message.events]
    return [(one.kind, one.reason) for one in events if one.request_id == request_id]


def unhurried() -> Policy:
    """Promises that no stall of the machine endangers."""
    document = default_policy().model_dump(mode="json")
    for one in document["classes"]:
        one["slo"]["ttft_s"], one["max_wait_s"] = 60.0, 600.0
    return Policy.model_validate(document)


def test_decisions_reach_the_stream_with_their_reasons(fleet: Fleet) -> None:
    fleet.client.publish_policy(1, unhurried())
    fleet.start("w1")
    fleet.client.send("a", prompt(1), max_tokens=3)
    wait_until(lambda: decisions_about(fleet, "a")[-1:] == [("finished", "length")], "the end")
    assert decisions_about(fleet, "a") == [
        ("queued", "arrived"),
        ("scheduled", "only_class_waiting"),
        ("first_token", "turn"),
        ("finished", "length"),
    ]


def test_what_it_learned_about_its_steps_is_announced_for_admission(fleet: Fleet) -> None:
    fleet.start("w1", step_s=0.005)
    fleet.client.send("a", prompt(1), max_tokens=60)
    fleet.client.wait_for_end()
    info = wait_until(
        lambda: (found := fleet.client.info("w1")) and found.cost_model.get("num_observed", 0) > 50 and found,
        "a taught cost model",
    )
    assert info.cost_model["base_s"] + info.cost_model["decode_row_s"] == pytest.approx(0.005, abs=0.004)
