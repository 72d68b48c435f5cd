"""The gateway's running parts in one place: takes requests in, follows them to their end, loses none.

`current()` gives Django's views the runtime of this process; its coroutines run on `runtime.loop`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import redis.asyncio
from django.db import connection
from django.db.utils import Error as DatabaseError
from redis.exceptions import RedisError

from controlplane.common.redis import run
from controlplane.inference.selectors import parameters_of
from controlplane.inference.services import AcceptedRequest, mark_finished
from controlplane.policies import selectors as policies
from controlplane.tenants.selectors import KeyInfo
from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import Frame, FrameRow, Header, Payload, Requeued
from scheduler_worker.protocol.scripts import CancelOutcome

from . import leases
from .acceptance import Acceptance
from .admission import Admission
from .adoption import Adopted, owned_headers, rebuild, unpack
from .answer import CANCELLED, FAILED, Answer, AnswerRules, Taken
from .auth import Keys, choose_class
from .clock import RedisClock
from .completions import Completions
from .database import DatabaseThreads
from .errors import ApiError, NotFound, Unavailable
from .intake import Sized, measure
from .live import LiveRequest
from .outputs import OutputReader
from .pool_view import REFRESH_S, PoolView
from .schema import Asked, read_chat, read_completion
from .telemetry import Telemetry
from .tokenizer import TextModel

logger = logging.getLogger(__name__)

TICK_S: Final = 1.0
RESTART_S: Final = 0.5
LOST_AFTER_S: Final = 5.0
MAX_MISSED_LOOKS: Final = 2
DRAIN_S: Final = 20.0
DATABASE_CHECK_S: Final = 3.0
LOST: Final = "The request was lost: neither the queue nor a worker knows it any more."
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is that this gateway holds."""

    state: str
    num_output_tokens: int
    text: str


def _new_name(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(3)}"


class GatewayRuntime:
    """One per web process. `start`, then `submit` and `cancel`, then `stop`."""

    def __init__(self, settings: GatewaySettings, model: TextModel) -> None:
        self.settings = settings
        self.model = model
        self.pool = settings.pool
        self.gateway = _new_name(settings.gateway_id)
        self.loop = asyncio.get_running_loop()
        self.clock = RedisClock()
        self.view = PoolView(self.pool, self.clock)
        self.redis = redis.asyncio.Redis.from_url(
            settings.redis_url, socket_connect_timeout=5, socket_timeout=10, max_connections=1000
        )
        self.telemetry = Telemetry(self.pool, self.clock, lambda: self.num_open)
        self._reads = DatabaseThreads("gateway-reads", 4)
        self._writes = DatabaseThreads("gateway-writes", 1)
        self.keys = Keys(self._reads)
        self.admission = Admission(self.pool, self.redis, self.view, self.telemetry)
        self._acceptance = Acceptance(self.pool, self.redis, self._writes)
        self._completions = Completions(self.pool, self.redis, _send_completions, self._recorded)
        self._live: dict[str, LiveRequest] = {}
        self._readers: dict[str, OutputReader] = {}
        self._reader_tasks: dict[str, asyncio.Task[Any]] = {}
        self._adopted: dict[str, Adopted] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewed_reading = time.perf_counter()
        self.started_at = time.time()
        self.is_stopping = False

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the policy and the workers, take a lease, start the loops."""
        global _current
        await self._refresh_once()
        await self._load_policy_from_database()
        self._follow(self.gateway)
        for name, job in self._jobs().items():
            self._spawn(_supervised(name, job))
        _current = self

    async def stop(self) -> None:
        """Take no more, let open answers finish for up to `DRAIN_S`, hand the rest to another gateway."""
        global _current
        self.is_stopping = True
        deadline = time.perf_counter() + DRAIN_S
        while self._live and time.perf_counter() < deadline:
            await asyncio.sleep(0.05)
        with suppress(RedisError):
            await self._completions.flush()
            await self._leave()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close()
        await self.redis.aclose()
        if _current is self:
            _current = None

    def _close(self) -> None:
        self._completions.close()
        self._writes.close()
        self._reads.close()

    async def _leave(self) -> None:
        """Without open requests the lease and the stream go; else the lease ends, so that another adopts at once."""
        key = keys.GATEWAY_LEASES.of(self.pool)
        if not self._live:
            await self._readers[self.gateway].delete()
            await self.redis.zrem(key, self.gateway)
        else:
            await self.redis.zadd(key, {self.gateway: 0})
        for name in self._adopted:
            await self.redis.zadd(key, {name: 0})

    def _jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        return {
            "acceptance": self._acceptance.run,
            "completions": self._completions.run,
            "telemetry": lambda: self.telemetry.run(self.redis, lambda: self.gateway),
            "pool view": partial(_every, REFRESH_S, self._refresh_once),
            "tick": partial(_every, TICK_S, self._tick),
        }

    def _spawn(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the gateway failed", exc_info=error)

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
                await self._reads.run(connection.ensure_connection)
        except (DatabaseError, TimeoutError) as error:
            logger.warning("the database does not answer: %s", error)
            return False
        return True

    # --- taking in -----------------------------------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        """Requests whose client still waits."""
        return sum(not live.answer.ended for live in self._live.values())

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
        sized = await measure(asked, self.model, rules, self.context)
        request_id = str(uuid.uuid4())
        cost = await self.admission.admit(key, policy, rules, request_id, sized)
        header = self._header(request_id, key, rules, sized, headers_reading, cost)
        live = self._new_live(header, asked, sized, rules, headers_reading, has_client)
        await self._commit(live, self._row(live, asked, sized, key, endpoint))
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
        self, header: Header, asked: Asked, sized: Sized, rules: ClassPolicy, reading: float, has_client: bool
    ) -> LiveRequest:
        answer_rules = AnswerRules(
            stop=asked.stop,
            min_tokens=asked.sampling.min_tokens,
            wants_logprobs=asked.sampling.logprobs is not None,
            prompt_tail=() if asked.is_chat else tuple(sized.token_ids[-8:]),
        )
        live = LiveRequest(
            header=header,
            answer=Answer(self.model.vocabulary, answer_rules, self.model.eos_ids),
            gateway=self.gateway,
            is_stream=asked.stream and has_client,
            rules=rules,
            headers_reading=reading,
            has_client=has_client,
        )
        self._live[header.request_id] = live
        return live

    def _row(
        self, live: LiveRequest, asked: Asked, sized: Sized, key: KeyInfo, endpoint: str
    ) -> AcceptedRequest:
        payload = Payload(request_id=live.request_id, token_ids=sized.packed(), sampling=sized.sampling)
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
            self._live.pop(live.request_id, None)
            self._spawn(self._undo(live, error.message))
            raise

    async def _undo(self, live: LiveRequest, why: str) -> None:
        """Neither queued nor accepted, whatever arrived of the attempt. What fails here is reconciled later."""
        live.answer.end(FAILED, why)
        live.end_reading = time.perf_counter()
        try:
            await run(self.redis, scripts.cancel(self.pool, live.request_id))
            await run(self.redis, scripts.forget(self.pool, live.gateway, [live.request_id]))
            await self._writes.run(mark_finished, [live.completion(self.clock)])
        except (RedisError, DatabaseError) as error:
            logger.error("request %s could not be taken back: %s", live.request_id, error)

    # --- following -----------------------------------------------------------------------------------------------

    def _follow(self, gateway: str) -> None:
        """Read a gateway's output stream from its beginning; what was read before is recognized."""
        if gateway in self._readers:
            return
        reader = OutputReader(self.pool, gateway, self.redis, self._on_row, self._on_requeued)
        self._readers[gateway] = reader
        self._reader_tasks[gateway] = self._spawn(_supervised(f"output of {gateway}", reader.run))

    def _unfollow(self, gateway: str) -> OutputReader:
        self._reader_tasks.pop(gateway).cancel()
        return self._readers.pop(gateway)

    def _on_requeued(self, entry: Requeued) -> None:
        live = self._live.get(entry.request_id)
        if live is not None:
            live.answer.requeued(entry.attempt)
            live.changed_reading = time.perf_counter()

    def _on_row(self, frame: Frame, row: FrameRow) -> None:
        live = self._live.get(row.request_id)
        if live is None:
            return
        before, was_ended = live.answer.num_received, live.answer.ended
        taken = live.answer.take(row)
        if taken is Taken.GAP:
            self._spawn(self._fill_gap(live, frame, row))
        if taken is not Taken.USED:
            return
        live.worker = frame.worker or live.worker
        self._count(live, live.answer.num_received - before)
        if row.finish:
            live.finished_published_at = frame.published_at
        self._after_row(live, was_ended)

    def _count(self, live: LiveRequest, num_tokens: int) -> None:
        if not num_tokens:
            return
        self.telemetry.tokens(live.header.class_id, num_tokens)
        if live.first_reading is None and not live.is_stream and not live.is_adopted:
            self.first_token(live)

    def _after_row(self, live: LiveRequest, was_ended: bool) -> None:
        answer = live.answer
        if answer.ended and not was_ended:
            if answer.stopped_by_string and not answer.closed:
                self._spawn(self.cancel(live.request_id))
            if not live.has_client:
                self.finish(live)
        elif answer.closed and live.is_recorded:
            self._drop(live)
        live.wake()

    async def _fill_gap(self, live: LiveRequest, frame: Frame, row: FrameRow) -> None:
        """Rows are missing: their tokens are in Redis all the same."""
        logger.warning("request %s: rows are missing before token %d", live.request_id, row.offset)
        published = await self.redis.get(keys.TOKENS.of(self.pool, live.request_id))
        live.answer.fill(unpack(published))
        if row.offset > live.answer.num_received:
            live.answer.end(FAILED, LOST)
            self._after_row(live, was_ended=False)
            return
        self._on_row(frame, row)
        live.wake()

    def first_token(self, live: LiveRequest) -> None:
        """The first token left (or, not streaming, is here)."""
        live.first_reading = time.perf_counter()
        self.telemetry.first_token(live.first_sample(self.clock))

    def finish(self, live: LiveRequest) -> None:
        """The client has its answer, or there is none to wait for: record how it ended. Once."""
        if live.end_reading is not None:
            return
        live.end_reading = time.perf_counter()
        if live.state == "succeeded":
            self.admission.forecast.ended(live.header.class_id, live.answer.num_output_tokens)
        if not live.is_adopted:
            self.telemetry.finished(live.end_sample(self.clock))
        self._completions.add(live, live.completion(self.clock))

    def _recorded(self, live: LiveRequest) -> None:
        live.is_recorded = True
        if live.answer.closed:
            self._drop(live)

    def _drop(self, live: LiveRequest) -> None:
        """Nothing more comes and nothing is owed."""
        self._live.pop(live.request_id, None)
        self._completions.forget(live)
        reader = self._readers.get(live.gateway)
        if reader is not None:
            reader.recorded(live.request_id)
        adopted = self._adopted.get(live.gateway)
        if adopted is not None:
            adopted.open.discard(live.request_id)

    # --- ending early --------------------------------------------------------------------------------------------

    async def cancel(self, request_id: str) -> CancelOutcome:
        """End a request wherever it is. Its last row comes through the output stream. Raises `Unavailable`."""
        try:
            return await run(self.redis, scripts.cancel(self.pool, request_id))
        except RedisError as error:
            raise Unavailable("The queue does not answer. Try again.", retry_after_s=1.0) from error

    def abandon(self, live: LiveRequest) -> None:
        """The client left: cancel after the grace, unless the answer ends before."""
        live.has_client = False
        if live.answer.ended:
            self.finish(live)
        else:
            self._spawn(self._abandon(live))

    async def _abandon(self, live: LiveRequest) -> None:
        if self.settings.disconnect_grace_s:
            await asyncio.sleep(self.settings.disconnect_grace_s)
        if live.answer.ended:
            return
        live.answer.end(CANCELLED)
        self.finish(live)
        await self.cancel(live.request_id)

    def progress(self, request_id: str) -> Progress | None:
        """How far a request is; None when this gateway does not hold it."""
        live = self._live.get(request_id)
        if live is None:
            return None
        answer = live.answer
        state = live.state if answer.ended else ("running" if answer.num_received else "queued")
        return Progress(state, answer.num_output_tokens, answer.text)

    # --- every second --------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        try:
            await self._renew()
            await run(self.redis, scripts.requeue_expired(self.pool))
            await self._adopt()
            await self._trim()
            await self._look_for_lost()
        except RedisError as error:
            logger.error("the gateway's upkeep failed: %s", error)

    async def _renew(self) -> None:
        reading = time.perf_counter()
        lapsed = reading - self._renewed_reading > keys.GATEWAY_LEASE_S
        lease = await run(self.redis, leases.renew(self.pool, self.gateway, lapsed, self._adopted))
        self._renewed_reading = reading
        if lease is leases.Lease.TAKEN:
            self._take_new_name()

    def _take_new_name(self) -> None:
        """Another gateway finishes what was accepted under the old name; open clients still get their answers."""
        logger.error("the lease of %s was lost; this gateway goes on under a new name", self.gateway)
        self._readers[self.gateway].is_ours = False
        self.gateway = _new_name(self.settings.gateway_id)
        self._follow(self.gateway)

    async def _adopt(self) -> None:
        for name in await run(self.redis, leases.adopt(self.pool, self.gateway)):
            await self._adopt_one(name)
        for name in [name for name, adopted in self._adopted.items() if adopted.is_done]:
            await self._end_adoption(name)

    async def _adopt_one(self, name: str) -> None:
        """Take over a gateway's open requests; it may be this one under an older name."""
        headers = await owned_headers(self.redis, self.pool, name)
        headers = [one for one in headers if one.request_id not in self._live]
        logger.warning("adopting %d requests of %s", len(headers), name)
        parameters = await self._reads.run(parameters_of, [one.request_id for one in headers])
        requests = await rebuild(self.redis, self.pool, headers, parameters, self.model)
        self._live.update((live.request_id, live) for live in requests)
        self._adopted[name] = Adopted(name, {one for one, live in self._live.items() if live.gateway == name})
        self._follow(name)
        for live in requests:
            self._after_row(live, was_ended=False)

    async def _end_adoption(self, name: str) -> None:
        """Its last request is recorded: nothing of it is needed any more."""
        self._adopted.pop(name)
        await self._unfollow(name).delete()
        await self.redis.delete(keys.OWNED.of(self.pool, name))
        await self.redis.zrem(keys.GATEWAY_LEASES.of(self.pool), name)

    async def _trim(self) -> None:
        in_use = {live.gateway for live in self._live.values()} | {self.gateway, *self._adopted}
        for name, reader in list(self._readers.items()):
            if name not in in_use:
                self._unfollow(name)
            elif reader.is_ours and name not in self._adopted:
                await reader.trim()

    async def _look_for_lost(self) -> None:
        """A request that neither waits nor is claimed will get no more rows: end it rather than let it hang."""
        long_ago = time.perf_counter() - LOST_AFTER_S
        quiet = [
            one for one in self._live.values() if not one.answer.closed and one.changed_reading < long_ago
        ]
        if not quiet:
            return
        async with self.redis.pipeline(transaction=False) as pipe:
            for live in quiet:
                pipe.hexists(keys.HEADERS.of(self.pool), live.request_id)
                pipe.hexists(keys.CLAIMS.of(self.pool), live.request_id)
            known = await pipe.execute()
        for index, live in enumerate(quiet):
            self._looked(live, is_known=bool(known[2 * index] or known[2 * index + 1]))

    def _looked(self, live: LiveRequest, is_known: bool) -> None:
        live.num_missed_looks = 0 if is_known else live.num_missed_looks + 1
        if live.num_missed_looks < MAX_MISSED_LOOKS:
            return
        was_ended = live.answer.ended
        live.answer.end(FAILED, LOST)
        live.answer.closed = True
        self._after_row(live, was_ended)


async def _every(interval_s: float, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        await job()
        await asyncio.sleep(interval_s)


async def _supervised(name: str, job: Callable[[], Awaitable[None]]) -> None:
    """A loop that fails is logged and started again: one bad message must not end the gateway."""
    while True:
        try:
            await job()
        except Exception:
            logger.exception("%s failed; starting it again", name)
            await asyncio.sleep(RESTART_S)


def _send_completions(batch: list[str]) -> None:
    from controlplane.inference.tasks import record_completions

    record_completions.delay(batch)
