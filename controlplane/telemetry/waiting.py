"""Who waits in a class and why, from what the workers say of it.

Every worker sees the whole queue, and knows of its own room only. A request waits because no worker takes it: what
is told is the mildest of their reasons, and the slots are those of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlplane.telemetry.schema import TenantWaiting, WaitingView
from scheduler_worker.protocol.messages import ClassLoad, TenantLoad
from scheduler_worker.protocol.reasons import NO_WORKER, WAIT_REASONS, Wait, waiting

SEVERITY: Final = {reason: number for number, reason in enumerate(WAIT_REASONS)}
DRAINING: Final = "draining"
SUMMED: Final = ("num_running", "num_free_slots")


@dataclass(frozen=True, slots=True)
class Doors:
    """What all classes share: the loads of each worker by class, those that take work first, and their pace.

    `starts_per_s` is of the last 30 s, None without a start; `step_s` a step's usual time.
    """

    loads: Sequence[Mapping[str, ClassLoad]]
    takes_work: bool
    holders: str
    starts_per_s: float | None
    step_s: float | None


def waiting_view(load: ClassLoad | None, doors: Doors) -> WaitingView:
    """The queue of a class: `load` is the mirror that counts."""
    if load is None:
        return WaitingView(num=0, oldest_s=0.0, num_late=0)
    tenants = tuple(_tenant(one, load, doors) for one in load.tenants)
    listed = sum(one.num for one in tenants)
    return WaitingView(
        num=load.num_waiting,
        oldest_s=load.oldest_wait_s,
        num_late=load.num_late,
        waits_s=load.waits_s,
        tenants=tenants,
        num_more=max(0, load.num_waiting - listed) if load.num_tenants else 0,
        num_more_tenants=max(0, load.num_tenants - sum(one.num > 0 for one in tenants)),
    )


def _tenant(mine: TenantLoad, load: ClassLoad, doors: Doors) -> TenantWaiting:
    loads = [known for one in doors.loads if (known := one.get(load.class_id)) is not None]
    seen = _of_tenant(mine.tenant, loads)
    total = sum(one.recent_tokens for one in loads)
    got = sum(one.recent_tokens for one in seen) / total if total > 0 else None
    reason, numbers = _reason(mine, seen, doors)
    due = min((one.share_due for one in seen if one.share_due is not None), default=mine.share_due)
    wait = Wait(load.class_id, mine.tenant, reason, mine.num_ahead, numbers, got, due)
    return TenantWaiting(
        tenant=mine.tenant,
        num=mine.num_waiting,
        num_running=sum(one.num_running for one in seen),
        oldest_s=mine.oldest_wait_s,
        num_ahead=mine.num_ahead,
        predicted_start_s=_predicted_start_s(mine, reason, doors) if mine.num_waiting else None,
        share_got=got,
        share_due=due,
        reason=reason if mine.num_waiting else "",
        why=waiting(wait) if mine.num_waiting else (),
    )


def _of_tenant(tenant: str, loads: Iterable[ClassLoad]) -> list[TenantLoad]:
    return [one for load in loads for one in load.tenants if one.tenant == tenant]


def _reason(
    mine: TenantLoad, seen: Sequence[TenantLoad], doors: Doors
) -> tuple[str, dict[str, float | int | str]]:
    """The mildest reason with its numbers; slots are summed over the workers."""
    if not doors.loads:
        return NO_WORKER, {}
    told = [one for one in seen if one.reason]
    mildest = min(told, key=lambda one: SEVERITY.get(one.reason, len(SEVERITY)), default=mine)
    if not doors.takes_work and mildest.reason != DRAINING:
        return NO_WORKER, {}
    numbers = dict(mildest.numbers)
    for name in SUMMED:
        numbers[name] = sum(_figure(one, name) for one in told)
    return mildest.reason, {**numbers, "holders": doors.holders}


def _figure(one: TenantLoad, name: str) -> float:
    value = one.numbers.get(name, 0)
    return value if isinstance(value, int | float) else 0.0


def _predicted_start_s(mine: TenantLoad, reason: str, doors: Doors) -> float | None:
    if not doors.takes_work:
        return None
    if reason in ("claimed", "not_claimed"):
        return doors.step_s
    if mine.num_ahead is None or not doors.starts_per_s:
        return None
    return (mine.num_ahead + 1) / doors.starts_per_s
