"""May it enter? Decided before anything is written, with the core's own code.

The place is reserved first and atomically, so that two gateways never take the same room; the reply says what
waited before, and a refusal gives the place back. A no says when to come back.
"""

from __future__ import annotations

import time
from typing import Final, NoReturn

import redis.asyncio
from redis.exceptions import RedisError

from controlplane.tenants.selectors import KeyInfo
from scheduler_worker.core import admission as core
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import EventRecord
from scheduler_worker.protocol.reasons import render
from scheduler_worker.protocol.scripts import Reserved

from .errors import Refused, Unavailable
from .forecast import Forecast
from .intake import Sized
from .pool_view import PoolView
from .quotas import Quotas
from .redis_scripts import ScriptBatcher
from .telemetry import Telemetry

NO_ANSWER: Final = "The queue does not answer. Try again."
MOST_RETRY_S: Final = 600.0
Numbers = dict[str, float | int | str]


class Admission:
    """The decision for one pool."""

    def __init__(self, pool: str, client: redis.asyncio.Redis, view: PoolView, telemetry: Telemetry) -> None:
        self._pool = pool
        self._view = view
        self._telemetry = telemetry
        self._reserve: ScriptBatcher[Reserved] = ScriptBatcher(client)
        self._unreserve: ScriptBatcher[bool] = ScriptBatcher(client)
        self._quotas = Quotas(pool, client)
        self.forecast = Forecast(time.perf_counter())

    def policy(self) -> Policy:
        """The live policy; raises `Unavailable` while none is known."""
        if self._view.policy is None:
            raise Unavailable(
                "No policy was published for this pool yet.", code="no_policy", retry_after_s=5.0
            )
        return self._view.policy

    async def admit(
        self, key: KeyInfo, policy: Policy, rules: ClassPolicy, request_id: str, sized: Sized
    ) -> float:
        """Reserve the request's place; its expected cost. Raises `Unavailable` or `Refused`."""
        if not self._view.is_fresh:
            raise Unavailable(NO_ANSWER, code="no_queue", retry_after_s=1.0)
        if not self._view.has_worker:
            # Without a time to come back: nobody knows it.
            raise Unavailable(self._view.why_no_worker(), code="no_worker")
        block_size = self._view.block_size
        hashes = sized.hashes(block_size)
        ask = self.forecast.ask(rules.id, sized.num_prompt_tokens, sized.max_tokens, hashes, block_size or 1)
        cost = core.request_cost(policy, ask)
        try:
            await self._check_quota(key, rules, sized)
            await self._check_queue(key, policy, rules, request_id, sized, ask, cost)
        except RedisError as error:
            raise Unavailable(NO_ANSWER, code="no_queue", retry_after_s=1.0) from error
        self.forecast.accepted(ask, cost, time.perf_counter(), hashes)
        self._arrived(key, rules, sized, "accepted")
        return cost

    async def _check_quota(self, key: KeyInfo, rules: ClassPolicy, sized: Sized) -> None:
        spent = await self._quotas.take(key, sized.num_prompt_tokens + sized.max_tokens)
        if spent is not None:
            numbers: Numbers = {"per_minute": spent.per_minute, "retry_after_s": spent.retry_after_s}
            self._refuse(key, rules, sized, "tenant_quota", numbers)

    async def _check_queue(
        self,
        key: KeyInfo,
        policy: Policy,
        rules: ClassPolicy,
        request_id: str,
        sized: Sized,
        ask: core.Ask,
        cost: float,
    ) -> None:
        call = scripts.reserve(self._pool, request_id, rules.id, cost, rules.queue_limit)
        reserved = await self._reserve.run(call)
        decision = self._decide(policy, ask, reserved)
        if isinstance(decision, core.Admitted):
            return
        if reserved.accepted:
            await self._unreserve.run(scripts.unreserve(self._pool, request_id))
        self._refuse(key, rules, sized, decision.reason, _numbers(decision))

    def _decide(self, policy: Policy, ask: core.Ask, reserved: Reserved) -> core.Admitted | core.Refused:
        view, now = self._view, time.perf_counter()
        return self.forecast.decide(
            policy, ask, reserved.load, view.workers, view.num_gateways, now, reserved.num_claimed
        )

    def _refuse(
        self, key: KeyInfo, rules: ClassPolicy, sized: Sized, reason: str, numbers: Numbers
    ) -> NoReturn:
        """Tell operators and client the same, in words."""
        event = EventRecord(
            at=self._telemetry.now(),
            kind="rejected",
            reason=str(reason),
            class_id=rules.id,
            tenant=key.tenant_slug,
            numbers={**numbers, "num_prompt_tokens": sized.num_prompt_tokens},
        )
        self._telemetry.event(event)
        self._arrived(key, rules, sized, str(reason))
        code = "rate_limit_exceeded" if reason == "tenant_quota" else str(reason)
        raise Refused(render(event), code=code, retry_after_s=float(numbers["retry_after_s"]))

    def _arrived(self, key: KeyInfo, rules: ClassPolicy, sized: Sized, outcome: str) -> None:
        self._telemetry.arrived(rules.id, key.tenant_slug, sized.num_prompt_tokens, sized.max_tokens, outcome)


def _numbers(refused: core.Refused) -> Numbers:
    """The decision's figures under the names that `protocol.reasons` prints."""
    numbers: Numbers = {
        **refused.numbers,
        "retry_after_s": min(max(refused.retry_after_s, 1.0), MOST_RETRY_S),
    }
    added_s = float(numbers.get("prefill_s", 0.0)) if refused.reason == "predicted_ttft" else 0.0
    if "wait_s" in numbers:
        numbers["predicted_s"] = float(numbers["wait_s"]) + added_s
        numbers["bound_s"] = float(numbers["bound_s"]) + added_s
    return numbers
