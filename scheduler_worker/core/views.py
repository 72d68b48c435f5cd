"""What telemetry shows of the state: O(batch + classes + tenants) to make."""

from __future__ import annotations

from heapq import nlargest
from itertools import islice, repeat
from typing import Final

from scheduler_worker.core.plan import ClassView, SequenceView, Snapshot, TenantService
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import State
from scheduler_worker.core.waiting import WaitingTenants

MAX_WAITS: Final = 64


def snapshot(state: State, now: float) -> Snapshot:
    """The state at `now`."""
    present = _present(state)
    tenants = WaitingTenants(state, present, now)
    return Snapshot(
        at=now,
        step=state.step,
        policy_version=state.policy_version,
        batch_limit=state.batch_limit.limit,
        batch_limit_itl_s=state.batch_limit.itl_s,
        batch_limit_target_s=state.batch_limit.target_s,
        num_slots=state.capacity.num_slots,
        num_blocks=state.pool.num_blocks,
        num_used_blocks=state.pool.num_used,
        num_cached_blocks=state.pool.num_cached,
        classes=tuple(_class_view(state, one.id, present, tenants, now) for one in state.policy.classes),
        sequences=tuple(_sequence_view(state, one, now) for one in present),
    )


def _present(state: State) -> list[Sequence]:
    """Everybody that this worker holds: claimed, running, parked."""
    parts = (state.lockstep.rows, state.catching_up, state.closing, state.vacating, state.ready.sequences)
    return [one for part in parts for one in part.values()]


def _class_view(
    state: State, class_id: str, present: list[Sequence], tenants: WaitingTenants, now: float
) -> ClassView:
    mine = [one for one in present if one.class_id == class_id]
    claimed = [one for one in mine if one.state is SequenceState.CLAIMED]
    waits = _longest_waits(state, class_id, claimed, now)
    queue = state.waiting.classes.get(class_id)
    num_late = sum(1 for wait_s in waits if wait_s > state.class_policy(class_id).slo.ttft_s)
    if num_late == MAX_WAITS and queue is not None:  # there may be more: those that cannot meet it any more
        num_late = max(num_late, queue.num_late)
    return ClassView(
        class_id=class_id,
        num_waiting=(len(queue) if queue else 0) + len(claimed),
        num_running=sum(1 for one in mine if one.state is SequenceState.RUNNING),
        num_parked=sum(1 for one in mine if one.state is SequenceState.PARKED),
        oldest_wait_s=waits[0] if waits else 0.0,
        num_late=num_late,
        waits_s=waits,
        service_tokens=state.ledger.service(class_id),
        tenants=tenants.of_class(class_id),
        num_tenants=tenants.num_of_class(class_id),
        services=_services(state, class_id),
    )


def _services(state: State, class_id: str) -> dict[str, TenantService]:
    """Of thousands of tenants, four times a second: built by column, which calls no constructor of ours a tenant."""
    ledger = state.ledger
    tenants = ledger.classes[class_id].tenants
    accounts = tenants.values()
    columns = zip(
        [account.service(ledger.step) for account in accounts],
        [account.weight for account in accounts],
        [account.num_active > 0 for account in accounts],
        strict=True,
    )
    return dict(zip(tenants, map(tuple.__new__, repeat(TenantService), columns), strict=False))


def _longest_waits(state: State, class_id: str, claimed: list[Sequence], now: float) -> tuple[float, ...]:
    queue = state.waiting.classes.get(class_id)
    oldest = islice(queue.by_age.in_order(), MAX_WAITS) if queue else ()
    return tuple(nlargest(MAX_WAITS, (max(0.0, now - one.arrived_at) for one in (*oldest, *claimed))))


def _sequence_view(state: State, sequence: Sequence, now: float) -> SequenceView:
    return SequenceView(
        seq_id=sequence.seq_id,
        class_id=sequence.class_id,
        tenant=sequence.tenant,
        state=sequence.state,
        arrived_at=sequence.arrived_at,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_computed_tokens=state.lockstep.num_computed(sequence),
        num_generated_tokens=state.lockstep.num_generated(sequence),
        num_blocks=len(sequence.blocks),
        first_token_late=_is_first_token_late(sequence, now),
        parked_at=sequence.parked_at,
        parked_by_memory=sequence.parked_by_memory,
    )


def _is_first_token_late(sequence: Sequence, now: float) -> bool:
    if sequence.first_token_at is not None:
        return sequence.first_token_at > sequence.deadline_at
    return not sequence.has_first_token and now > sequence.deadline_at
