"""Scripts of many requests in one round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from controlplane.common.redis import run
from scheduler_worker.protocol.scripts import Call

T = TypeVar("T")


async def run_many(client: redis.asyncio.Redis, calls: Sequence[Call[T]]) -> list[T]:
    """Run idempotent scripts, in order; a server that lost its scripts gets their text."""
    if not calls:
        return []
    if len(calls) == 1:
        return [await run(client, calls[0])]
    try:
        replies = await _send(client, calls)
    except NoScriptError:
        for text in {call.script.sha: call.script.text for call in calls}.values():
            await client.script_load(text)
        replies = await _send(client, calls)
    return [call.parse(reply) for call, reply in zip(calls, replies, strict=True)]


async def _send(client: redis.asyncio.Redis, calls: Sequence[Call[Any]]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.evalsha(call.script.sha, len(call.keys), *call.keys, *call.args)
        return await pipe.execute()


class ScriptBatcher(Generic[T]):
    """Gathers calls that are made while one round trip runs and sends them as the next."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._waiting: list[tuple[Call[T], asyncio.Future[T]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def run(self, call: Call[T]) -> T:
        """The call's reply; raises `RedisError`."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, done))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())
        return await done

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await run_many(self._client, [call for call, _ in batch])
            except RedisError as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), reply in zip(batch, replies, strict=True):
                if not done.done():
                    done.set_result(reply)
