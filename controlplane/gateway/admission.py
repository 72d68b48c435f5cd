"""May it enter? Decided before anything is written; a yes holds its place in Redis for 5 s, a no says when to retry."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Final

import redis.asyncio
from redis.exceptions import RedisError

from controlplane.tenants.selectors import KeyInfo
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.scripts import Reserved

from .errors import Refused, Unavailable
from .intake import Sized
from .pool_view import PoolView
from .quotas import Quotas
from .redis_scripts import ScriptBatcher
from .telemetry import Telemetry

RATE_WINDOW_S: Final = 30.0
LEAST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 120.0


class DrainRate:
    """How fast a class's requests end here: what the time until there is room again is computed from."""

    def __init__(self) -> None:
        self._ends: dict[str, deque[float]] = {}

    def ended(self, class_id: str, now: float) -> None:
        """A request of the class ended."""
        ends = self._ends.setdefault(class_id, deque(maxlen=1000))
        ends.append(now)

    def seconds_for(self, class_id: str, num: int, now: float) -> float:
        """Seconds until `num` requests will have ended, between 1 and 120."""
        ends = self._ends.get(class_id, deque())
        while ends and ends[0] < now - RATE_WINDOW_S:
            ends.popleft()
        if not ends:
            return LEAST_RETRY_S * 5
        per_second = len(ends) / max(now - ends[0], 1.0)
        return min(max(num / per_second, LEAST_RETRY_S), MOST_RETRY_S)


class Admission:
    """The decision for one pool."""

    def __init__(self, pool: str, client: redis.asyncio.Redis, view: PoolView, telemetry: Telemetry) -> None:
        self._pool = pool
        self._view = view
        self._telemetry = telemetry
        self._reserve: ScriptBatcher[Reserved] = ScriptBatcher(client)
        self._quotas = Quotas(pool, client)
        self.drain_rate = DrainRate()

    def policy(self) -> Policy:
        """The live policy; raises `Unavailable` while none is known."""
        if self._view.policy is None:
            raise Unavailable(
                "No policy was published for this pool yet.", code="no_policy", retry_after_s=5.0
            )
        return self._view.policy

    async def admit(
        self, key: KeyInfo, rules: ClassPolicy, request_id: str, sized: Sized, cost: float
    ) -> None:
        """Reserve its place; raises `Unavailable` or `Refused`."""
        if not self._view.is_fresh:
            raise Unavailable("The queue does not answer. Try again.", code="no_queue", retry_after_s=1.0)
        if not self._view.has_worker:
            raise Unavailable("No worker is alive to serve this model.", code="no_worker", retry_after_s=2.0)
        try:
            await self._check_quota(key, rules, sized)
            await self._check_queue(key, rules, request_id, sized, cost)
        except RedisError as error:
            raise Unavailable(
                "The queue does not answer. Try again.", code="no_queue", retry_after_s=1.0
            ) from error
        self._arrived(key, rules, sized, "accepted")

    async def _check_quota(self, key: KeyInfo, rules: ClassPolicy, sized: Sized) -> None:
        spent = await self._quotas.take(key, sized.num_prompt_tokens + sized.max_tokens)
        if spent is None:
            return
        self._arrived(key, rules, sized, "tenant_quota")
        raise Refused(
            f"The tenant {key.tenant_slug} has used its {spent.what} of {spent.per_minute:,} a minute; "
            f"room again in {math.ceil(spent.retry_after_s)} s.",
            code="rate_limit_exceeded",
            retry_after_s=spent.retry_after_s,
        )

    async def _check_queue(
        self, key: KeyInfo, rules: ClassPolicy, request_id: str, sized: Sized, cost: float
    ) -> None:
        call = scripts.reserve(self._pool, request_id, rules.id, cost, rules.queue_limit)
        reserved = await self._reserve.run(call)
        if reserved.accepted:
            return
        waiting = reserved.load[rules.id].num if rules.id in reserved.load else rules.queue_limit
        retry_after_s = self.drain_rate.seconds_for(
            rules.id, waiting - rules.queue_limit + 1, time.perf_counter()
        )
        self._arrived(key, rules, sized, "queue_full")
        raise Refused(
            f"The queue of class {rules.id} is full: {waiting} requests wait, its limit is {rules.queue_limit}. "
            f"Try again in {math.ceil(retry_after_s)} s.",
            code="queue_full",
            retry_after_s=retry_after_s,
        )

    def _arrived(self, key: KeyInfo, rules: ClassPolicy, sized: Sized, outcome: str) -> None:
        telemetry = self._telemetry
        telemetry.arrived(rules.id, key.tenant_slug, sized.num_prompt_tokens, sized.max_tokens, outcome)
        if outcome != "accepted":
            event = EventRecord(
                at=telemetry.now(),
                kind="rejected",
                reason=outcome,
                class_id=rules.id,
                tenant=key.tenant_slug,
                numbers={"num_prompt_tokens": sized.num_prompt_tokens, "queue_limit": rules.queue_limit},
            )
            telemetry.event(event)
