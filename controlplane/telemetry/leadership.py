"""One of several processes leads: a lock in Redis that expires when its holder stops renewing it."""

from __future__ import annotations

from typing import Final

from redis.asyncio import Redis

LEADER_TTL_S: Final = 2.5

_RENEW: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


class Leadership:
    """This process's claim to lead. `name` tells it from all others."""

    def __init__(self, redis: Redis, key: str, name: str) -> None:
        self._key, self._name = key, name
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    async def hold(self) -> bool:
        """Renew the lock, or take it where nobody has it; whether it is ours for `LEADER_TTL_S` more."""
        return bool(await self._renew(keys=[self._key], args=[self._name, int(LEADER_TTL_S * 1000)]))

    async def give_up(self) -> None:
        """Let another process lead at once."""
        await self._release(keys=[self._key], args=[self._name])
