"""A tenant's requests and tokens per minute, counted in Redis so that all gateways count together.

Each limit is a bucket that holds one minute's worth and refills evenly. A request takes its prompt and its
`max_tokens`, both or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Final

import redis.asyncio

from controlplane.common.redis import run
from controlplane.tenants.selectors import KeyInfo
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.lua import Script
from scheduler_worker.protocol.scripts import Call

_TEXT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local wants = {}
for i = 1, #ARGV, 3 do
  local name, limit, amount = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local level = tonumber(redis.call('HGET', KEYS[1], name) or limit)
  local at = tonumber(redis.call('HGET', KEYS[1], name .. ':at') or now)
  level = math.min(limit, level + (now - at) * limit / 60)
  local missing = math.min(amount, limit) - level
  if missing > 0 then return {name, string.format('%.3f', missing * 60 / limit)} end
  wants[#wants + 1] = {name, level - amount}
end
for _, want in ipairs(wants) do
  redis.call('HSET', KEYS[1], want[1], string.format('%.6f', want[2]))
  redis.call('HSET', KEYS[1], want[1] .. ':at', string.format('%.6f', now))
end
redis.call('EXPIRE', KEYS[1], 3600)
return {}
"""
_TAKE: Final = Script("take_quota", _TEXT, sha1(_TEXT.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True)
class Spent:
    """Which limit is used up, and when there is room for this request again."""

    what: str
    per_minute: int
    retry_after_s: float


class Quotas:
    """The tenants' buckets of one pool."""

    def __init__(self, pool: str, client: redis.asyncio.Redis) -> None:
        self._pool = pool
        self._client = client

    async def take(self, key: KeyInfo, num_tokens: int) -> Spent | None:
        """Take a request of `num_tokens` from the tenant's buckets; None when there was room, or no limit."""
        limits = {"requests": (key.requests_per_minute, 1), "tokens": (key.tokens_per_minute, num_tokens)}
        args = [part for name, (limit, amount) in limits.items() if limit for part in (name, limit, amount)]
        if not args:
            return None
        reply = await run(
            self._client, Call(_TAKE, (keys.QUOTA.of(self._pool, key.tenant_slug),), tuple(args), _reply)
        )
        if reply is None:
            return None
        name, retry_after_s = reply
        return Spent(name, limits[name][0] or 0, retry_after_s)


def _reply(reply: Any) -> tuple[str, float] | None:
    return (reply[0].decode(), float(reply[1])) if reply else None
