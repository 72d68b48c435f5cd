"""What must hold between any two verbs. Runs after each step in tests, sampled in simulation, and when a worker
idles: O(everything), never on the hot path."""

from __future__ import annotations

from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import Sequence, SequenceState
from scheduler_worker.core.state import State


def check_all(scheduler: Scheduler) -> None:
    """Raise AssertionError with what is broken, if anything is."""
    state = scheduler.state
    _check_places(state)
    _check_room(state)
    _check_counts(state)
    _check_lockstep(state)
    _check_ledger(state)
    _check_queues(state)


def _places(state: State) -> dict[str, list[Sequence]]:
    return {
        "waiting": list(state.waiting.sequences.values()),
        "ready": list(state.ready.sequences.values()),
        "catching_up": list(state.catching_up.values()),
        "lockstep": list(state.lockstep.rows.values()),
        "closing": list(state.closing.values()),
        "vacating": list(state.vacating.values()),
    }


def _check_places(state: State) -> None:
    """Every sequence is in exactly one place, in a state that belongs there."""
    allowed = {
        "waiting": {SequenceState.WAITING},
        "ready": {SequenceState.CLAIMED, SequenceState.PARKED},
        "catching_up": {SequenceState.RUNNING},
        "lockstep": {SequenceState.RUNNING},
        "closing": {SequenceState.RUNNING},
        "vacating": {SequenceState.PARKED},
    }
    seen: list[str] = []
    for place, sequences in _places(state).items():
        for sequence in sequences:
            assert sequence.state in allowed[place], f"{sequence.seq_id} is {sequence.state} in {place}"
            assert state.sequences.get(sequence.seq_id) is sequence, f"{sequence.seq_id} in {place} is unknown"
            seen.append(sequence.seq_id)
    assert sorted(seen) == sorted(state.sequences), "a sequence is in two places, or in none"
    for ended in state.limbo:
        assert ended.state is SequenceState.FINISHED, f"{ended.seq_id} is in limbo and {ended.state}"


def _holders(state: State) -> list[Sequence]:
    places = _places(state)
    return [*places["catching_up"], *places["lockstep"], *places["closing"], *places["vacating"], *state.limbo]


def _check_room(state: State) -> None:
    """Slots and blocks: free + used == total, each used once, promises add up."""
    holders = _holders(state)
    slots = [one.slot for one in holders if one.slot is not None]
    assert sorted([*slots, *state.free_slots]) == list(range(state.capacity.num_slots)), "slots do not add up"
    assert state.free_slots == sorted(state.free_slots), "free slots are out of order"
    assert all(one.slot is not None for one in holders if one not in state.limbo), "a row without a slot"
    for queued in (*state.waiting.sequences.values(), *state.ready.sequences.values()):
        assert queued.slot is None, f"{queued.seq_id} waits with a slot"
        assert not queued.blocks, f"{queued.seq_id} waits with blocks"
    state.pool.check_integrity([one.blocks for one in holders])
    promised = sum(max(0, one.promised_blocks - len(one.blocks)) for one in holders)
    assert promised == state.pool.num_promised, f"promised {state.pool.num_promised}, in truth {promised}"
    checkpoints = sum(one.checkpoint_blocks for one in state.sequences.values())
    assert checkpoints == state.num_checkpoint_blocks, "checkpoints do not add up"
    assert checkpoints <= state.capacity.num_swap_blocks, "more checkpoints than the host has room for"


def _check_counts(state: State) -> None:
    """Tokens: computed < known ≤ allowed, and covered by blocks."""
    size = state.capacity.block_size
    for sequence in state.sequences.values():
        sampled = state.lockstep.num_sampled(sequence)
        computed = state.lockstep.num_computed(sequence)
        generated = state.lockstep.num_generated(sequence)
        name = sequence.seq_id
        assert 0 <= generated <= sampled <= sequence.max_tokens, f"{name}: {generated} of {sampled} tokens"
        assert sampled - generated <= len(state.in_flight), f"{name}: more placeholders than steps in flight"
        assert 0 <= computed < sequence.num_prompt_tokens + sampled, f"{name}: computed {computed}"
        if sequence.slot is not None:
            assert computed <= len(sequence.blocks) * size, f"{name}: {computed} tokens, {len(sequence.blocks)} blocks"
        if sequence.checkpoint_blocks:
            assert sequence.checkpoint_blocks == state.pool.blocks_for(computed), f"{name}: a torn checkpoint"


def _check_lockstep(state: State) -> None:
    """The wheel and the endings know every row once."""
    lockstep = state.lockstep
    in_line = lockstep.decode_rows(frozenset()).seq_ids
    assert sorted(in_line) == sorted(lockstep.rows), "the line and the rows disagree"
    in_wheel = sorted(seq_id for bucket in lockstep.buckets() for seq_id in bucket)
    assert in_wheel == sorted(lockstep.rows), "the wheel lost a row"
    in_place = {seq_id: place for bucket in lockstep.buckets() for seq_id, place in bucket.items()}
    assert all(lockstep.row_at(in_place[one]).seq_id == one for one in lockstep.rows), "the wheel misplaced a row"
    assert all(in_line[row.place] == seq_id for seq_id, row in lockstep.rows.items()), "a row has another's place"
    promising = sum(one.promised_blocks > len(one.blocks) for one in lockstep.rows.values())
    assert lockstep.num_with_promise(list(in_place.values())) == promising, "the columns of blocks are wrong"
    in_endings = sorted(seq_id for rows in lockstep.endings().values() for seq_id in rows)
    assert in_endings == sorted(lockstep.rows), "an ending is lost"
    assert all(step > lockstep.step for step in lockstep.endings()), "a row outlived its ending"
    counted = sum(lockstep.num_computed(one) for one in lockstep.rows.values())
    assert counted == lockstep.num_kv_tokens(lockstep.step), "context tokens do not add up"
    assert len(state.in_flight) == lockstep.step - lockstep.applied or not state.in_flight, "steps in flight"
    assert len(state.in_flight) <= state.capacity.max_in_flight_steps, "too many steps in flight"


def _check_ledger(state: State) -> None:
    """Activity and queue counts per class and tenant."""
    active: dict[tuple[str, str], int] = {}
    queued: dict[tuple[str, str], int] = {}
    for sequence in state.sequences.values():
        key = (sequence.class_id, sequence.tenant)
        active[key] = active.get(key, 0) + 1
        waits = sequence.seq_id in state.waiting.sequences or sequence.seq_id in state.ready.sequences
        queued[key] = queued.get(key, 0) + waits
    for class_id, account in state.ledger.classes.items():
        mine = {tenant: n for (one, tenant), n in active.items() if one == class_id}
        assert account.num_active == sum(mine.values()), f"{class_id}: active sequences do not add up"
        for name, tenant_account in account.tenants.items():
            assert tenant_account.num_active == mine.get(name, 0), f"{class_id}/{name}: active"
            assert tenant_account.num_queued == queued.get((class_id, name), 0), f"{class_id}/{name}: queued"


def _check_queues(state: State) -> None:
    """Each order of a queue lists the same sequences, each once."""
    for queues in (state.waiting, state.ready):
        listed: list[str] = []
        for queue in queues.classes.values():
            aged = [one.seq_id for one in queue.by_age.in_order()]
            by_tenant = [one.seq_id for tenant in queue.tenants.values() for one in tenant.in_order()]
            fresh = [one.seq_id for one in queue.by_latest_start.in_order()]
            assert sorted(aged) == sorted(by_tenant), "age and tenants disagree"
            assert len(aged) == len(queue) == len(fresh) + queue.num_late, "fresh and late do not add up"
            listed.extend(aged)
        assert sorted(listed) == sorted(queues.sequences), "a queue lost a sequence"
