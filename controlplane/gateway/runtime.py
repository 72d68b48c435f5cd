"""The gateway's running parts in one place: takes requests in, follows them to their end, loses none.

`current()` gives Django's views the runtime of this process; its coroutines run on `runtime.loop`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import redis.asyncio
from django.db import connection
from django.db.utils import Error as DatabaseError
from redis.exceptions import RedisError

from controlplane.common.redis import run
from controlplane.inference.services import AcceptedRequest, mark_finished
from controlplane.policies import selectors as policies
from controlplane.tenants.selectors import KeyInfo
from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol import scripts
from scheduler_worker.protocol.messages import Header, Payload
from scheduler_worker.protocol.scripts import CancelOutcome
from scheduler_worker.protocol.token_bytes import unpack

from .acceptance import Acceptance
from .admission import Admission
from .answer import FAILED, Answer, AnswerRules
from .auth import Keys, choose_class
from .clock import RedisClock
from .database import DatabaseThreads
from .errors import ApiError, NotFound, Unavailable
from .intake import Sized, measure
from .live import LiveRequest
from .pool_view import REFRESH_S, PoolView
from .requests import Progress, Requests
from .schema import Asked, read_chat, read_completion
from .tasks import Tasks, every
from .telemetry import Telemetry
from .tokenizer import TextModel
from .upkeep import TICK_S, Upkeep

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 1000
DRAIN_S: Final = 20.0
DATABASE_CHECK_S: Final = 3.0
NATIVE_CHAT: Final = "requests.chat"
NATIVE_COMPLETIONS: Final = "requests.completions"

_current: GatewayRuntime | None = None


def current() -> GatewayRuntime:
    """The runtime of this process; raises `RuntimeError` where none runs."""
    if _current is None:
        raise RuntimeError("the gateway does not run in this process; serve it with controlplane.asgi")
    return _current


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What the runtime needs to know; `from_django` reads the installation's."""

    pool: str
    redis_url: str
    gateway_id: str
    max_body_bytes: int
    disconnect_grace_s: float

    @classmethod
    def from_django(cls) -> GatewaySettings:
        """The part of `settings.TIDEGATE` that is the gateway's."""
        from django.conf import settings

        known = settings.TIDEGATE
        return cls(
            pool=known.pool,
            redis_url=known.redis_url,
            gateway_id=known.gateway_id,
            max_body_bytes=known.max_body_bytes,
            disconnect_grace_s=known.disconnect_grace_s,
        )


class GatewayRuntime:
    """One per web process. `start`, then `submit` and `cancel`, then `stop`."""

    def __init__(self, settings: GatewaySettings, model: TextModel) -> None:
        self.settings = settings
        self.model = model
        self.pool = settings.pool
        self.loop = asyncio.get_running_loop()
        self.clock = RedisClock()
        self.view = PoolView(self.pool, self.clock)
        self.redis = redis.asyncio.Redis.from_url(
            settings.redis_url, socket_connect_timeout=5, socket_timeout=10, max_connections=MAX_CONNECTIONS
        )
        self._tasks = Tasks()
        self._reads = DatabaseThreads("gateway-reads", 4)
        self._writes = DatabaseThreads("gateway-writes", 1)
        self.keys = Keys(self._reads)
        self._telemetry = Telemetry(
            self.pool,
            self.clock,
            lambda: self.requests.num_unanswered,
            lambda: self.requests.misses(self.view.policy),
        )
        self.admission = Admission(self.pool, self.redis, self.view, self._telemetry)
        self._acceptance = Acceptance(self.pool, self.redis, self._writes)
        self.requests = Requests(
            self.pool,
            self.redis,
            self.clock,
            self._tasks,
            self._telemetry,
            _send_completions,
            self.admission.forecast.ended,
        )
        self.upkeep = Upkeep(self.pool, settings.gateway_id, self.redis, self.requests, self._reads, model)
        self.started_at = time.time()
        self.is_stopping = False

    @property
    def gateway(self) -> str:
        """The name under which requests are accepted now."""
        return self.upkeep.gateway

    # --- life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the policy and the workers, take a lease, start the loops."""
        global _current
        await self._refresh_once()
        await self._load_policy_from_database()
        with suppress(RedisError):
            await self.upkeep.start()
        for name, job in self._jobs().items():
            self._tasks.keep(name, job)
        _current = self

    async def stop(self) -> None:
        """Take no more, let open answers finish for up to `DRAIN_S`, hand the rest to another gateway."""
        global _current
        self.is_stopping = True
        deadline = time.perf_counter() + DRAIN_S
        while len(self.requests) and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        with suppress(RedisError):
            await self.requests.completions.flush()
            await self.upkeep.leave()
        await self._tasks.stop()
        self.requests.completions.close()
        self._writes.close()
        self._reads.close()
        await self.redis.aclose()
        if _current is self:
            _current = None

    def _jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "acceptance": self._acceptance.run,
            "completions": self.requests.completions.run,
            "telemetry": lambda: self._telemetry.run(self.redis, lambda: self.gateway),
            "pool view": partial(every, REFRESH_S, self._refresh_once),
            "upkeep": partial(every, TICK_S, self.upkeep.tick),
        }

    async def _refresh_once(self) -> None:
        try:
            await self.view.refresh(self.redis)
        except RedisError as error:
            logger.error("the pool cannot be read: %s", error)

    async def _load_policy_from_database(self) -> None:
        """Redis may have lost the announcement; the database has not."""
        if self.view.policy is not None:
            return
        version = await self._reads.run(policies.find_active, self.pool)
        if version is not None:
            self.view.use_policy(await self._reads.run(policies.announcement_of, version))

    async def readiness(self) -> dict[str, bool]:
        """What has to be there for a request to be served."""
        return {
            "accepting": not self.is_stopping,
            "policy": self.view.policy is not None,
            "worker": self.view.has_worker,
            "redis": self.view.is_fresh,
            "postgres": await self._database_answers(),
        }

    async def _database_answers(self) -> bool:
        try:
            async with asyncio.timeout(DATABASE_CHECK_S):
                await self._reads.run(_ask_database)
        except (DatabaseError, TimeoutError) as error:
            logger.warning("the database does not answer: %s", error)
            return False
        return True

    # --- taking in ----------------------------------------------------------------------------------------

    @property
    def num_commits(self) -> int:
        """Commits of accepted requests since the start; many requests share one."""
        return self._acceptance.num_commits

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return min(self.model.max_context_tokens, self.view.max_model_len or self.model.max_context_tokens)

    async def submit(
        self, key: KeyInfo, body: bytes, *, chat: bool, headers_reading: float | None = None
    ) -> str:
        """Accept a request that nobody waits for here; its id. Raises `ApiError`.

        `headers_reading` is `perf_counter` when its headers came, if that was earlier than now.
        """
        reading = time.perf_counter() if headers_reading is None else headers_reading
        asked = read_chat(body) if chat else read_completion(body)
        endpoint = NATIVE_CHAT if chat else NATIVE_COMPLETIONS
        live = await self.accept(key, asked, endpoint, reading, has_client=False)
        return live.request_id

    async def accept(
        self, key: KeyInfo, asked: Asked, endpoint: str, headers_reading: float, has_client: bool = True
    ) -> LiveRequest:
        """Admit, commit, queue. Once this returns the request will end, come what may. Raises `ApiError`."""
        self._check_model(asked)
        if self.is_stopping:
            raise Unavailable("This gateway is stopping. Try again.", retry_after_s=1.0)
        policy = self.admission.policy()
        rules = choose_class(key, policy, asked.priority)
        sized = await measure(asked, self.model, rules, self.context, self.view.block_size)
        request_id = str(uuid.uuid4())
        cost = await self.admission.admit(key, policy, rules, request_id, sized)
        header = self._header(request_id, key, rules, sized, headers_reading, cost)
        payload = Payload(request_id=request_id, token_ids=sized.packed(), sampling=sized.sampling)
        live = self._new_live(header, payload, asked, rules, headers_reading, has_client)
        await self._commit(live, self._row(live, payload, asked, key, endpoint))
        return live

    def _check_model(self, asked: Asked) -> None:
        if asked.model != self.model.name:
            raise NotFound(
                f"The model {asked.model!r} does not exist here; this pool serves {self.model.name!r}.",
                code="model_not_found",
                param="model",
            )

    def _header(
        self, request_id: str, key: KeyInfo, rules: ClassPolicy, sized: Sized, reading: float, cost: float
    ) -> Header:
        return Header(
            request_id=request_id,
            class_id=rules.id,
            tenant=key.tenant_slug,
            tenant_weight=key.tenant_weight,
            gateway=self.gateway,
            arrived_at=self.clock.at(reading),
            num_prompt_tokens=sized.num_prompt_tokens,
            max_tokens=sized.max_tokens,
            block_hashes=sized.hashes(self.view.block_size),
            cost=cost,
        )

    def _new_live(
        self,
        header: Header,
        payload: Payload,
        asked: Asked,
        rules: ClassPolicy,
        reading: float,
        has_client: bool,
    ) -> LiveRequest:
        answer_rules = AnswerRules(
            stop=asked.stop,
            min_tokens=asked.sampling.min_tokens,
            wants_logprobs=asked.sampling.logprobs is not None,
            prompt_tail=() if asked.is_chat else tuple(unpack(payload.token_ids[-32:])),
        )
        live = LiveRequest(
            header=header,
            answer=Answer(self.model.vocabulary, answer_rules, self.model.eos_ids),
            gateway=header.gateway,
            payload=payload,
            is_stream=asked.stream and has_client,
            rules=rules,
            headers_reading=reading,
            has_client=has_client,
        )
        self.requests.add(live)
        return live

    def _row(
        self, live: LiveRequest, payload: Payload, asked: Asked, key: KeyInfo, endpoint: str
    ) -> AcceptedRequest:
        return AcceptedRequest(
            header=live.header,
            payload=payload,
            tenant_id=key.tenant_id,
            key_id=key.key_id,
            endpoint=endpoint,
            model=asked.model,
            prompt=asked.prompt,
            parameters=asked.parameters,
            stream=asked.stream,
            retention=key.retention,
        )

    async def _commit(self, live: LiveRequest, row: AcceptedRequest) -> None:
        """A failure after the commit is written down at once: no row stays open that nobody works on."""
        try:
            await self._acceptance.accept(row)
        except ApiError as error:
            self.requests.discard(live)
            self._tasks.spawn(self._undo(live, error.message))
            raise

    async def _undo(self, live: LiveRequest, why: str) -> None:
        """Neither queued nor accepted, whatever came of the attempt. What fails here is reconciled later."""
        live.answer.end(FAILED, why)
        live.end_reading = time.perf_counter()
        try:
            await run(self.redis, scripts.cancel(self.pool, live.request_id))
            await run(self.redis, scripts.forget(self.pool, live.gateway, [live.request_id]))
            await self._writes.run(mark_finished, [live.completion(self.clock)])
        except (RedisError, DatabaseError) as error:
            logger.error("request %s could not be taken back: %s", live.request_id, error)

    # --- ending early -------------------------------------------------------------------------------------

    async def cancel(self, request_id: str) -> CancelOutcome:
        """End a request wherever it is; its row follows. Raises `Unavailable`."""
        return await self.requests.cancel(request_id)

    def abandon(self, live: LiveRequest) -> None:
        """The client left: cancel after the grace, unless the answer ends before."""
        self.requests.abandon(live, self.settings.disconnect_grace_s)

    def progress(self, request_id: str) -> Progress | None:
        """How far a request is; None when this gateway does not hold it."""
        return self.requests.progress(request_id)


def _send_completions(batch: list[str]) -> None:
    from controlplane.inference.tasks import record_completions

    record_completions.delay(batch)


def _ask_database() -> None:
    """One round trip, on a connection of the thread that runs this.

    `connection` must be looked up here: taken on the event loop it would be another one for each call, which no
    thread gives back, until the pool is empty.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
