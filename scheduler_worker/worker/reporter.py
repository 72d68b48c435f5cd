"""The reporter: telemetry, the worker's own key, and the chores that workers share, beside the step loop."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

import redis

from scheduler_worker.core.plan import ClassView, Event, SequenceView, Snapshot, TenantView, WaitReason
from scheduler_worker.core.sequence import SequenceState
from scheduler_worker.executor import Executor
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import (
    ClassLoad,
    EventRecord,
    RunningRow,
    TenantLoad,
    WorkerInfo,
    WorkerTelemetry,
    encode,
)
from scheduler_worker.protocol.telemetry import stream_fields
from scheduler_worker.worker import transport
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.device import DeviceMeter
from scheduler_worker.worker.inbox import DrainingChanged, HelperThread, Inbox
from scheduler_worker.worker.stats import LoopStats, RecentService

logger = logging.getLogger(__name__)

CHORES_EVERY_S: Final = 1.0
INFO_TTL_S: Final = 10
MAX_EVENTS: Final = 500
MAX_SERVED_TENANTS: Final = 3


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who reports."""

    pool: str
    worker: str
    started_at: float


class Reporter(HelperThread):
    """Sends what the loop closes. Nothing closed, nothing sent: a stuck loop falls silent."""

    def __init__(
        self,
        client: redis.Redis,
        clock: RedisClock,
        inbox: Inbox,
        identity: WorkerIdentity,
        executor: Executor,
        meter: DeviceMeter,
    ) -> None:
        super().__init__("reporter", inbox)
        self._client, self._clock, self._identity = client, clock, identity
        self._capacity, self._executor_info, self._meter = executor.capacity, executor.info, meter
        self._closed: SimpleQueue[LoopStats | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._num_sent = 0
        self._draining = False
        self._next_chores = 0.0
        self._last_sent: WorkerTelemetry | None = None
        self._last_words: EventRecord | None = None
        self._recent: defaultdict[str, RecentService] = defaultdict(RecentService)

    def submit(self, stats: LoopStats) -> None:
        """Report these; called by the loop."""
        self._closed.put(stats)

    def stop(self, timeout_s: float, last_words: EventRecord | None = None) -> None:
        """Send what is closed and `last_words`, delete the worker's key, end."""
        self._last_words = last_words
        self._closed.put(None)
        self.join(timeout_s)
        self._stopping.set()

    def work(self) -> None:
        """Report and do chores until stopped."""
        try:
            while (stats := self._next_stats()) is not None:
                self._persist(partial(self._report, stats))
            self._persist(self._say_goodbye)
        except transport.Stopped:
            return

    def _persist(self, action: Any) -> None:
        transport.persist("the reporter", action, self._stopping)

    def _next_stats(self) -> LoopStats | None:
        """The newest closed stats; chores are done while waiting."""
        while True:
            if time.monotonic() >= self._next_chores:
                self._next_chores = time.monotonic() + CHORES_EVERY_S
                self._persist(self._do_chores)
            try:
                return self._closed.get(timeout=CHORES_EVERY_S)
            except Empty:
                continue

    def _do_chores(self) -> None:
        transport.synchronize(self._client, self._clock)
        for one in transport.run(self._client, scripts.requeue_expired(self._identity.pool)):
            logger.warning("requeued %s: the lease of %s ran out", one.request_id, one.worker)
        self._look_for_orders()

    def _look_for_orders(self) -> None:
        order = self._client.get(keys.WORKER_CONTROL.of(self._identity.pool, self._identity.worker))
        if (order == keys.DRAIN) is not self._draining:
            self._draining = order == keys.DRAIN
            self._inbox.put(DrainingChanged(self._draining))

    def _report(self, stats: LoopStats) -> None:
        assert stats.snapshot is not None
        self._send(self._telemetry(stats, stats.snapshot))
        info_key = keys.WORKER_INFO.of(self._identity.pool, self._identity.worker)
        self._client.set(info_key, encode(self._info(stats, stats.snapshot)), ex=INFO_TTL_S)

    def _send(self, telemetry: WorkerTelemetry) -> None:
        self._client.xadd(
            keys.TELEMETRY.of(self._identity.pool),
            stream_fields(telemetry),  # type: ignore[arg-type]
            maxlen=keys.TELEMETRY_MAX_ENTRIES,
            approximate=True,
        )
        self._num_sent += 1
        self._last_sent = telemetry

    def _say_goodbye(self) -> None:
        """The last event goes out with the figures of the last message; the worker is listed no longer."""
        self._client.delete(keys.WORKER_INFO.of(self._identity.pool, self._identity.worker))
        if self._last_words is not None and self._last_sent is not None:
            last = self._last_sent
            fields = {name: getattr(last, name) for name in last.__struct_fields__}
            fields |= {
                "at": self._clock.now(),
                "sequence": self._num_sent,
                "num_steps": 0,
                "num_prompt_tokens": 0,
                "num_generated_tokens": {},
                "num_running": 0,
                "rows": (),
                "events": (self._last_words,),
            }
            self._send(WorkerTelemetry(**fields))

    def _info(self, stats: LoopStats, snapshot: Snapshot) -> WorkerInfo:
        capacity, info = self._capacity, self._executor_info
        return WorkerInfo(
            worker=self._identity.worker,
            pool=self._identity.pool,
            model=info.model,
            started_at=self._identity.started_at,
            num_slots=capacity.num_slots,
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_model_len=capacity.max_model_len,
            dtype=info.dtype,
            attention_backend=info.attention_backend,
            cost_model=stats.cost_model,
            policy_version=snapshot.policy_version,
            draining=stats.draining,
        )

    def _telemetry(self, stats: LoopStats, snapshot: Snapshot) -> WorkerTelemetry:
        running = [one for one in snapshot.sequences if one.state is SequenceState.RUNNING]
        return WorkerTelemetry(
            worker=self._identity.worker,
            pool=self._identity.pool,
            at=snapshot.at,
            sequence=self._num_sent,
            policy_version=snapshot.policy_version,
            device=self._meter.read(),
            batch_limit=snapshot.batch_limit,
            num_slots=snapshot.num_slots,
            num_running=len(running),
            num_blocks=snapshot.num_blocks,
            num_used_blocks=snapshot.num_used_blocks,
            num_steps=len(stats.durations_s),
            interval_s=stats.interval_s,
            num_prompt_tokens=stats.num_prompt_tokens,
            num_generated_tokens=dict(stats.num_generated_tokens),
            batch_limit_itl_s=snapshot.batch_limit_itl_s,
            batch_limit_target_s=snapshot.batch_limit_target_s,
            step_p50_s=percentile(stats.durations_s, 50),
            step_p99_s=percentile(stats.durations_s, 99),
            overhead_p50_s=percentile(stats.overheads_s, 50),
            rows=tuple(running_row(one) for one in snapshot.sequences if one.state in ON_DEVICE),
            classes=tuple(self._class_load(one, stats.draining, snapshot.at) for one in snapshot.classes),
            events=tuple(event_record(one) for one in stats.events[-MAX_EVENTS:]),
        )


    def _class_load(self, one: ClassView, draining: bool, at: float) -> ClassLoad:
        recent = self._recent[one.class_id]
        recent.read(one.services, at)
        return class_load(one, recent, draining)


ON_DEVICE: Final = frozenset({SequenceState.RUNNING, SequenceState.PARKED})


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]


def running_row(one: SequenceView) -> RunningRow:
    """A running or parked sequence on the wire. It decodes once only its newest token is left to compute."""
    left = one.num_prompt_tokens + one.num_generated_tokens - one.num_computed_tokens
    state = "decode" if left <= 1 and one.num_generated_tokens else "prefill"
    return RunningRow(
        request_id=one.seq_id,
        class_id=one.class_id,
        state="parked" if one.state is SequenceState.PARKED else state,
        arrived_at=one.arrived_at,
        num_prompt_tokens=one.num_prompt_tokens,
        num_generated_tokens=one.num_generated_tokens,
        num_blocks=one.num_blocks,
        late=one.first_token_late,
        parked_at=one.parked_at,
        by_memory=one.parked_by_memory,
    )


def class_load(one: ClassView, recent: RecentService, draining: bool) -> ClassLoad:
    """A class on the wire."""
    return ClassLoad(
        class_id=one.class_id,
        num_waiting=one.num_waiting,
        num_running=one.num_running,
        num_parked=one.num_parked,
        oldest_wait_s=one.oldest_wait_s,
        num_late=one.num_late,
        waits_s=one.waits_s,
        service_tokens=one.service_tokens,
        tenants=tuple(_tenant_loads(one, recent, draining)),
        num_tenants=one.num_tenants,
        recent_tokens=sum(recent.tokens.values()),
    )


def _tenant_loads(one: ClassView, recent: RecentService, draining: bool) -> Iterator[TenantLoad]:
    """The tenants that wait longest, and those that were served most of late."""
    waiting = {view.tenant: view for view in one.tenants}
    served = [tenant for tenant, num in recent.tokens.most_common(MAX_SERVED_TENANTS) if num >= 1]
    weights = sum(known.weight for known in one.services.values() if known.is_active)
    for tenant in (*waiting, *(name for name in served if name not in waiting)):
        known = one.services.get(tenant)
        due = known.weight / weights if known is not None and known.is_active else None
        yield _tenant_load(tenant, waiting.get(tenant), recent.tokens[tenant], due, draining)


def _tenant_load(
    tenant: str, view: TenantView | None, recent_tokens: float, due: float | None, draining: bool
) -> TenantLoad:
    if view is None:
        return TenantLoad(tenant=tenant, recent_tokens=recent_tokens, share_due=due)
    return TenantLoad(
        tenant=tenant,
        num_waiting=view.num_waiting,
        num_running=view.num_running,
        oldest_wait_s=view.oldest_wait_s,
        num_ahead=view.num_ahead,
        reason=WaitReason.DRAINING if draining else view.reason,
        numbers=dict(view.numbers),
        recent_tokens=recent_tokens,
        share_due=due,
    )


def event_record(event: Event) -> EventRecord:
    """An event on the wire."""
    return EventRecord(
        at=event.at,
        kind=event.kind.value,
        reason=event.reason.value,
        request_id=event.seq_id,
        class_id=event.class_id,
        tenant=event.tenant,
        numbers=dict(event.numbers),
    )
