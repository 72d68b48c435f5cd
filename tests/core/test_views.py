"""The snapshot's figures, against their plain definition."""

from __future__ import annotations

from scheduler_worker.core.plan import TenantService
from scheduler_worker.core.scheduler import Scheduler
from tests.core.worlds import World, a_capacity


def plainly(scheduler: Scheduler) -> dict[str, dict[str, TenantService]]:
    ledger = scheduler.state.ledger
    return {
        class_id: {
            tenant: TenantService(account.service(ledger.step), account.weight, account.num_active > 0)
            for tenant, account in of_class.tenants.items()
        }
        for class_id, of_class in ledger.classes.items()
    }


def test_what_each_tenant_was_served_is_what_its_account_says_at_every_step() -> None:
    world = World(capacity=a_capacity(num_slots=3))
    for number in range(30):
        class_id = ("high", "medium", "low")[number % 3]
        world.add(f"r{number}", class_id, tenant=f"t{number % 7}", max_tokens=3 + number)
    for _ in range(40):
        world.step()
        told = {one.class_id: one.services for one in world.scheduler.snapshot(world.now).classes}
        assert told == plainly(world.scheduler)
    services = [one for of_class in told.values() for one in of_class.values()]
    assert {type(one) for one in services} == {TenantService}
    assert {one.is_active for one in services} == {True, False}
