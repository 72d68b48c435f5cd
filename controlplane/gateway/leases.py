"""Who lives: each gateway keeps a lease; one whose lease ran out is adopted by exactly one other.

The adopter renews the dead gateway's lease too, so that a third does not adopt the same, and that the work of
an adopter that dies passes on. A gateway that finds its own lease taken goes on under a new name.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha1
from typing import Any, Final

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.lua import Script
from scheduler_worker.protocol.scripts import Call

_NOW: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local function lease(id, lease_s) redis.call('ZADD', KEYS[1], string.format('%.6f', now + lease_s), id) end
"""


def _script(name: str, body: str) -> Script:
    text = _NOW + body
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_RENEW: Final = _script(
    "renew_gateway",
    """
local me, lease_s, lapsed = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local ends_at = redis.call('ZSCORE', KEYS[1], me)
if lapsed and (not ends_at or tonumber(ends_at) > now) then return 'taken' end
lease(me, lease_s)
for i = 4, #ARGV do lease(ARGV[i], lease_s) end
return 'held'
""",
)

_ADOPT: Final = _script(
    "adopt_gateways",
    """
local adopted = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))) do
  if id ~= ARGV[1] then
    lease(id, tonumber(ARGV[2]))
    adopted[#adopted + 1] = id
  end
end
return adopted
""",
)


class Lease(StrEnum):
    """What became of a renewal."""

    HELD = "held"
    TAKEN = "taken"


def renew(pool: str, gateway: str, lapsed: bool, adopted: Iterable[str] = ()) -> Call[Lease]:
    """Renew a gateway's lease and those of the gateways that it adopted.

    `lapsed`: no renewal succeeded for a whole lease, so that a lease in force must be somebody else's doing.
    """
    args: tuple[str | float, ...] = (gateway, keys.GATEWAY_LEASE_S, int(lapsed), *adopted)
    return Call(_RENEW, (keys.GATEWAY_LEASES.of(pool),), args, _lease)


def adopt(pool: str, gateway: str) -> Call[tuple[str, ...]]:
    """Take every gateway whose lease is over; their ids."""
    args = (gateway, keys.GATEWAY_LEASE_S)
    return Call(_ADOPT, (keys.GATEWAY_LEASES.of(pool),), args, _names)


def _lease(reply: Any) -> Lease:
    return Lease(reply.decode())


def _names(reply: Any) -> tuple[str, ...]:
    return tuple(name.decode() for name in reply)
