"""Why a tenant's requests wait, from what several workers say of the queue."""

from __future__ import annotations

from typing import Any

from django.test import Client

from controlplane.telemetry.fold import TelemetryFold
from controlplane.telemetry.schema import TenantWaiting, WaitingView
from scheduler_worker.protocol.messages import TenantLoad
from tests.telemetry.builders import class_of, event, fold, info, load, policy, row, seen, worker
from tests.telemetry.conftest import in_thread
from tests.telemetry.publisher import Publisher
from tests.telemetry.test_takeover import _restored, _until

URL = "/api/v1/telemetry/waiting"


def tenant(name: str = "acme", reason: str = "all_slots", **fields: Any) -> TenantLoad:
    numbers = {"num_running": 8, "num_free_slots": 0, **fields.pop("numbers", {})}
    usual = {"num_waiting": 1, "num_ahead": 0, "oldest_wait_s": 4.2}
    return TenantLoad(tenant=name, reason=reason, numbers=numbers, **{**usual, **fields})


def queue(*tenants: TenantLoad, **fields: Any) -> Any:
    num = sum(one.num_waiting for one in tenants)
    waiting = sum(one.num_waiting > 0 for one in tenants)
    return load(num_waiting=num, **{"tenants": tenants, "num_tenants": waiting, **fields})


def waits(one: TelemetryFold, at: float = 1) -> WaitingView:
    return class_of(seen(one, at)).waiting


def only(one: TelemetryFold, at: float = 1) -> TenantWaiting:
    (shown,) = waits(one, at).tenants
    return shown


def test_busy_slots_are_those_of_all_workers_with_who_holds_them() -> None:
    one = fold()
    one.take(worker(1, "gpu0", classes=(queue(tenant()),), rows=(row("a"), row("b", "low"))))
    one.take(worker(1, "gpu1", classes=(queue(tenant()),), rows=(row("c", "low"), row("d", "low", state="parked"))))
    assert only(one).why[0] == "All 16 slots are busy, 2 with low and 1 with high."


def test_a_worker_with_room_decides_over_full_ones() -> None:
    one = fold()
    free = {"num_running": 6, "num_free_slots": 2}
    one.take(worker(1, "gpu0", classes=(queue(tenant(reason="not_claimed", numbers=free)),)))
    one.take(worker(1, "gpu1", classes=(queue(tenant()),)))
    shown = only(one)
    assert (shown.reason, shown.why[0][:34]) == ("not_claimed", "Not claimed yet: 2 slots are free,")


def test_a_draining_worker_does_not_speak_for_the_others() -> None:
    one = fold()
    one.set_workers({"gpu1": info("gpu1", draining=True)}, {})
    one.take(worker(1, "gpu0", classes=(queue(tenant()),)))
    one.take(worker(1, "gpu1", classes=(queue(tenant(reason="draining")),)))
    assert only(one).reason == "all_slots"


def test_when_all_workers_drain_that_is_the_reason() -> None:
    one = fold()
    one.set_workers({"gpu0": info("gpu0", draining=True)}, {})
    one.take(worker(1, classes=(queue(tenant(reason="draining")),)))
    shown = only(one)
    assert (shown.why, shown.predicted_start_s) == (("Every worker is draining: none takes another request.",), None)


def test_a_silent_workers_reasons_are_not_repeated() -> None:
    one = fold()
    one.take(worker(1, classes=(queue(tenant()),)))
    assert only(one, at=4).why == ("No worker takes requests now.",)


def test_shares_are_of_the_classs_tokens_on_all_workers() -> None:
    one = fold()
    mine = {"recent_tokens": 300.0, "share_due": 0.5}
    one.take(worker(1, "gpu0", classes=(queue(tenant(**mine), recent_tokens=400.0),)))
    one.take(worker(1, "gpu1", classes=(queue(tenant(**mine), recent_tokens=600.0),)))
    assert (only(one).share_got, only(one).share_due) == (600 / 1000, 0.5)


def test_a_tenant_that_only_used_tokens_waits_for_nothing() -> None:
    one = fold()
    user = TenantLoad(tenant="beta", num_running=3, recent_tokens=700.0)
    one.take(worker(1, classes=(queue(tenant(recent_tokens=300.0), user, recent_tokens=1000.0),)))
    shown = waits(one).tenants[1]
    assert (shown.tenant, shown.num, shown.share_got, shown.why) == ("beta", 0, 0.7, ())


def test_the_start_is_predicted_by_the_pace_of_late() -> None:
    one = fold()
    starts = tuple(event(30 + n / 100, "scheduled", "turn") for n in range(15))
    one.take(worker(1))
    one.take(worker(31, events=starts, classes=(queue(tenant(num_ahead=4)),)))
    # 15 starts in 30 s are one in 2 s; four go before it.
    assert only(one, at=31).predicted_start_s == (4 + 1) / (15 / 30)


def test_without_a_start_of_late_none_is_predicted() -> None:
    one = fold()
    one.take(worker(1, classes=(queue(tenant(num_ahead=4)),)))
    assert only(one).predicted_start_s is None


def test_those_that_are_not_listed_are_summed() -> None:
    one = fold()
    one.take(worker(1, classes=(load(num_waiting=40, tenants=(tenant(num_waiting=7),), num_tenants=12),)))
    shown = waits(one)
    assert (shown.num_more, shown.num_more_tenants) == (33, 11)


def test_a_worker_of_an_older_build_says_nothing_of_tenants() -> None:
    one = fold()
    one.take(worker(1, classes=(load(num_waiting=40),)))
    assert (waits(one).tenants, waits(one).num_more) == ((), 0)


async def test_the_waiting_are_read_over_rest(publisher: Publisher, running_folder: Any, client: Client) -> None:
    await publisher.announce(policy())
    await publisher.worker(classes=(queue(tenant()),))
    async with running_folder():
        await _until(_restored)
        body = await in_thread(lambda: client.get(URL).json())
    (shown,) = body["classes"][0]["tenants"]
    assert (body["classes"][0]["class_id"], shown["tenant"], shown["oldest_s"]) == ("high", "acme", 4.2)
    assert shown["why"] == ["All 8 slots are busy.", "It is next in line."]


def test_who_waits_is_for_operators(client: Client) -> None:
    assert Client().get(URL).status_code == 401
