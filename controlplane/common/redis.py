"""Runs the scripts of `scheduler_worker.protocol.scripts` on a connection of redis-py.

The connection must not decode replies: `Redis.from_url(url)` without `decode_responses`.
"""

from __future__ import annotations

from typing import TypeVar

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from scheduler_worker.protocol.scripts import Call

T = TypeVar("T")


async def run(client: redis.asyncio.Redis, call: Call[T]) -> T:
    """Run a script by its SHA; its text travels only when the server does not know it (after a restart)."""
    num_keys, rest = len(call.keys), (*call.keys, *call.args)
    try:
        reply = await client.evalsha(call.script.sha, num_keys, *rest)
    except NoScriptError:
        reply = await client.eval(call.script.text, num_keys, *rest)
    return call.parse(reply)


def run_sync(client: redis.Redis, call: Call[T]) -> T:
    """`run` for synchronous code: Django services, Celery tasks, tests."""
    num_keys, rest = len(call.keys), (*call.keys, *call.args)
    try:
        reply = client.evalsha(call.script.sha, num_keys, *rest)
    except NoScriptError:
        reply = client.eval(call.script.text, num_keys, *rest)
    return call.parse(reply)
