"""The Lua text of the scripts: each is atomic and idempotent. `scripts` gives them types.

A stored header is plain msgpack whose first three fields have a fixed width, so that Lua can change them in
place: decoding and encoding it there would round the 63-bit block hashes to doubles.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import Final

import msgspec

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import Header

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Script:
    """Lua text and the SHA-1 that EVALSHA knows it by."""

    name: str
    text: str
    sha: str


# --- the stored form of a header ------------------------------------------------------------------

_FIXED_FIELDS: Final = (
    ("arrival_number", b"\xcf", 8),
    ("attempt", b"\xce", 4),
    ("num_generated_tokens", b"\xce", 4),
)
_MAP_MARK: Final = b"\xde"


def stored_parts(header: Header) -> tuple[bytes, bytes]:
    """The header's msgpack before and after the arrival number's value, which Lua puts between."""
    names = header.__struct_fields__
    before = _MAP_MARK + len(names).to_bytes(2, "big") + _encode(_FIXED_FIELDS[0][0]) + _FIXED_FIELDS[0][1]
    fixed = {name for name, *_ in _FIXED_FIELDS}
    later = (
        _encode(name) + mark + int(getattr(header, name)).to_bytes(width, "big")
        for name, mark, width in _FIXED_FIELDS[1:]
    )
    rest = (_encode(name) + _encode(getattr(header, name)) for name in names if name not in fixed)
    return before, b"".join((*later, *rest))


def _fixed_positions() -> dict[str, int]:
    """Where each fixed field's value begins in a stored header, counted from 1 as Lua does."""
    positions: dict[str, int] = {}
    at = 1 + len(_MAP_MARK) + 2
    for name, mark, width in _FIXED_FIELDS:
        positions[name] = at + len(_encode(name)) + len(mark)
        at = positions[name] + width
    return positions


# --- Lua ------------------------------------------------------------------------------------------

_KEY_NAMES: Final = {
    "HEADERS": keys.HEADERS,
    "CHANGES": keys.CHANGES,
    "SEQUENCE": keys.SEQUENCE,
    "RESERVATIONS": keys.RESERVATIONS,
    "RESERVATION_ENDS": keys.RESERVATION_ENDS,
    "CLASS_LOAD": keys.CLASS_LOAD,
    "PAYLOAD": keys.PAYLOAD,
    "TOKENS": keys.TOKENS,
    "CLAIMS": keys.CLAIMS,
    "CLAIMED_BY": keys.CLAIMED_BY,
    "WORKER_LEASES": keys.WORKER_LEASES,
    "OUTPUT": keys.OUTPUT,
    "OWNED": keys.OWNED,
    "POLICY": keys.POLICY,
}


def _lua_names() -> str:
    """Every key as a Lua local, from the table in `keys`; one with a second part ends where that begins."""
    lines = []
    for name, spec in _KEY_NAMES.items():
        before, after = spec.of("\0", "").split("\0")
        lines.append(f"local {name} = '{before}' .. ARGV[1] .. '{after}'")
    return "\n".join(lines)


def _lua_constants() -> str:
    at = _fixed_positions()
    return "\n".join(
        (
            f"local ATTEMPT_AT, NUM_GENERATED_AT = {at['attempt']}, {at['num_generated_tokens']}",
            f"local PAYLOAD_TTL_S, OUTPUT_TTL_S = {keys.PAYLOAD_TTL_S}, {keys.OUTPUT_TTL_S}",
            f"local MAX_CHANGES = {keys.CHANGES_MAX_ENTRIES}",
        )
    )


_LIBRARY: Final = """
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function renew_lease(worker, lease_s)
  redis.call('ZADD', WORKER_LEASES, string.format('%.6f', now() + tonumber(lease_s)), worker)
end

local function add_load(class_id, num, cost)
  if redis.call('HINCRBY', CLASS_LOAD, class_id .. ':num', num) <= 0 then
    redis.call('HDEL', CLASS_LOAD, class_id .. ':num', class_id .. ':cost')
  else
    redis.call('HINCRBYFLOAT', CLASS_LOAD, class_id .. ':cost', string.format('%.17g', cost))
  end
end

local function drop_reservation(id)
  local held = redis.call('HGET', RESERVATIONS, id)
  if not held then return false end
  local cost, class_id = held:match('^(%S+) (.*)$')
  redis.call('HDEL', RESERVATIONS, id)
  redis.call('ZREM', RESERVATION_ENDS, id)
  add_load(class_id, -1, -tonumber(cost))
  return true
end

local function drop_expired_reservations()
  local expired = redis.call('ZRANGEBYSCORE', RESERVATION_ENDS, '-inf', string.format('%.6f', now()))
  for _, id in ipairs(expired) do drop_reservation(id) end
end

local function change(...)
  redis.call('XADD', CHANGES, 'MAXLEN', '~', MAX_CHANGES, '*', ...)
end

local function output(gateway, kind, message)
  redis.call('XADD', OUTPUT .. gateway, '*', kind, message)
  redis.call('EXPIRE', OUTPUT .. gateway, OUTPUT_TTL_S)
end

local function uint32_at(header, at)
  return (struct.unpack('>I4', header:sub(at, at + 3)))
end

local function with_uint32(header, at, value)
  return header:sub(1, at - 1) .. struct.pack('>I4', value) .. header:sub(at + 4)
end

local function num_published(id)
  return redis.call('STRLEN', TOKENS .. id) / 4
end

local function write_claim(id, worker, cancelled, header)
  redis.call('HSET', CLAIMS, id, string.char(cancelled, #worker) .. worker .. header)
end

local function read_claim(id)
  local claim = redis.call('HGET', CLAIMS, id)
  if not claim then return nil end
  local last = 2 + claim:byte(2)
  return {worker = claim:sub(3, last), cancelled = claim:byte(1), header = claim:sub(last + 1)}
end

local function end_cancelled(id, header)
  local fields = cmsgpack.unpack(header)
  local row = {request_id = id, attempt = fields.attempt, offset = num_published(id), finish = 'cancelled'}
  local frame = {v = fields.v, worker = '', step = 0, published_at = now(), rows = {row}}
  output(fields.gateway, 'frame', cmsgpack.pack(frame))
end

local function put_back(id, header)
  local attempt, offset = uint32_at(header, ATTEMPT_AT) + 1, num_published(id)
  header = with_uint32(with_uint32(header, ATTEMPT_AT, attempt), NUM_GENERATED_AT, offset)
  local fields = cmsgpack.unpack(header)
  redis.call('HSET', HEADERS, id, header)
  add_load(fields.class_id, 1, fields.cost or 0)
  local requeued = {v = fields.v, request_id = id, attempt = attempt, offset = offset}
  output(fields.gateway, 'requeued', cmsgpack.pack(requeued))
  change('op', 'add', 'id', id, 'header', header)
end

local function requeue(worker, id)
  redis.call('HDEL', CLAIMED_BY .. worker, id)
  local claim = read_claim(id)
  if not claim or claim.worker ~= worker then return false end
  redis.call('HDEL', CLAIMS, id)
  if claim.cancelled == 1 then end_cancelled(id, claim.header) else put_back(id, claim.header) end
  return true
end

local function requeue_each(worker, ids, done)
  for _, id in ipairs(ids) do
    if requeue(worker, id) then done[#done + 1] = {worker, id} end
  end
  return done
end
"""


def _script(name: str, body: str) -> Script:
    text = "\n".join((_lua_names(), _lua_constants(), _LIBRARY, body))
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


RESERVE: Final = _script(
    "reserve",
    """
local id, class_id, cost, limit, ttl_s = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
drop_expired_reservations()
local load, at = redis.call('HGETALL', CLASS_LOAD), now()
local function reply(accepted) return {accepted, string.format('%.6f', at), load, redis.call('HLEN', CLAIMS)} end
if redis.call('HEXISTS', RESERVATIONS, id) == 1 then return reply(1) end
if redis.call('EXISTS', PAYLOAD .. id) == 1 then return reply(1) end
if tonumber(redis.call('HGET', CLASS_LOAD, class_id .. ':num') or 0) >= limit then return reply(0) end
redis.call('HSET', RESERVATIONS, id, cost .. ' ' .. class_id)
redis.call('ZADD', RESERVATION_ENDS, string.format('%.6f', at + ttl_s), id)
add_load(class_id, 1, tonumber(cost))
return reply(1)
""",
)

UNRESERVE: Final = _script("unreserve", "return drop_reservation(ARGV[2]) and 1 or 0")

ENQUEUE: Final = _script(
    "enqueue",
    """
local id, class_id, cost, gateway = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
drop_reservation(id)
if redis.call('EXISTS', PAYLOAD .. id) == 1 then return false end
local number = redis.call('INCR', SEQUENCE)
local header = ARGV[6] .. struct.pack('>I8', number) .. ARGV[7]
redis.call('SET', PAYLOAD .. id, ARGV[8], 'EX', PAYLOAD_TTL_S)
redis.call('HSET', HEADERS, id, header)
redis.call('HSET', OWNED .. gateway, id, header)
redis.call('EXPIRE', OWNED .. gateway, OUTPUT_TTL_S)
add_load(class_id, 1, cost)
change('op', 'add', 'id', id, 'header', header)
return number
""",
)

CLAIM: Final = _script(
    "claim",
    """
local worker, won = ARGV[2], {}
renew_lease(worker, ARGV[3])
for i = 4, #ARGV do
  local id = ARGV[i]
  local header = redis.call('HGET', HEADERS, id)
  if header then
    local fields = cmsgpack.unpack(header)
    redis.call('HDEL', HEADERS, id)
    redis.call('HSET', CLAIMED_BY .. worker, id, uint32_at(header, ATTEMPT_AT))
    write_claim(id, worker, 0, header)
    add_load(fields.class_id, -1, -(fields.cost or 0))
    change('op', 'claimed', 'id', id, 'worker', worker)
    won[#won + 1] = {header, redis.call('GET', PAYLOAD .. id) or '', redis.call('GET', TOKENS .. id) or ''}
  end
end
return won
""",
)

PUBLISH: Final = _script(
    "publish",
    """
local worker, mine = ARGV[2], CLAIMED_BY .. ARGV[2]
local rows, lost, stored = {}, {}, {}
for i = 5, #ARGV, 2 do
  for _, row in ipairs(cmsgpack.unpack(ARGV[i]).rows) do
    rows[#rows + 1] = row
    local attempt = redis.call('HGET', mine, row.request_id)
    if not attempt or tonumber(attempt) ~= row.attempt then
      lost[#lost + 1] = row.request_id
    elseif #row.token_ids > 0 then
      local num = num_published(row.request_id)
      if num ~= row.offset then
        stored[#stored + 1] = row.request_id
        stored[#stored + 1] = num
      end
    end
  end
end
renew_lease(worker, ARGV[3])
if #lost + #stored > 0 then return {lost, stored} end
for _, row in ipairs(rows) do
  local id, tokens = row.request_id, {}
  for i, token in ipairs(row.token_ids) do tokens[i] = struct.pack('<I4', token) end
  if #tokens > 0 then
    redis.call('APPEND', TOKENS .. id, table.concat(tokens))
    if row.offset == 0 then redis.call('EXPIRE', TOKENS .. id, PAYLOAD_TTL_S) end
  end
  if row.finish ~= '' then
    redis.call('HDEL', mine, id)
    redis.call('HDEL', CLAIMS, id)
  end
end
for i = 4, #ARGV, 2 do output(ARGV[i], 'frame', ARGV[i + 1]) end
return {lost, stored}
""",
)

RENEW: Final = _script(
    "renew",
    """
renew_lease(ARGV[2], ARGV[3])
return redis.call('HGETALL', CLAIMED_BY .. ARGV[2])
""",
)

CANCEL: Final = _script(
    "cancel",
    """
local id = ARGV[2]
drop_reservation(id)
local header = redis.call('HGET', HEADERS, id)
if header then
  local fields = cmsgpack.unpack(header)
  redis.call('HDEL', HEADERS, id)
  add_load(fields.class_id, -1, -(fields.cost or 0))
  end_cancelled(id, header)
  change('op', 'cancel', 'id', id)
  return 'waiting'
end
local claim = read_claim(id)
if not claim then return 'unknown' end
if claim.cancelled == 0 then
  write_claim(id, claim.worker, 1, claim.header)
  change('op', 'cancel', 'id', id)
end
return 'claimed'
""",
)

REQUEUE_EXPIRED: Final = _script(
    "requeue_expired",
    """
drop_expired_reservations()
local done = {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKER_LEASES, '-inf', string.format('%.6f', now()))) do
  requeue_each(worker, redis.call('HKEYS', CLAIMED_BY .. worker), done)
  redis.call('ZREM', WORKER_LEASES, worker)
end
return done
""",
)

RELEASE: Final = _script(
    "release",
    """
local worker, which, ids = ARGV[2], ARGV[3], {}
if which == 'these' then
  for i = 4, #ARGV do ids[#ids + 1] = ARGV[i] end
else
  ids = redis.call('HKEYS', CLAIMED_BY .. worker)
end
if which == 'leave' then redis.call('ZREM', WORKER_LEASES, worker) end
return requeue_each(worker, ids, {})
""",
)

MIRROR: Final = _script(
    "mirror",
    """
local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)
return {redis.call('HVALS', HEADERS), redis.call('GET', POLICY) or '', last[1] and last[1][1] or '0-0'}
""",
)

FORGET: Final = _script(
    "forget",
    """
local num = 0
for i = 3, #ARGV do
  num = num + redis.call('HDEL', OWNED .. ARGV[2], ARGV[i])
  redis.call('DEL', PAYLOAD .. ARGV[i], TOKENS .. ARGV[i])
end
return num
""",
)

ANNOUNCE_POLICY: Final = _script(
    "announce_policy",
    """
local version, announcement, force = tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local live = redis.call('GET', POLICY)
if live == announcement then return 1 end
if live and not force and cmsgpack.unpack(live).version >= version then return 0 end
redis.call('SET', POLICY, announcement)
change('op', 'policy', 'id', version)
return 1
""",
)

ALL: Final[tuple[Script, ...]] = (
    RESERVE,
    UNRESERVE,
    ENQUEUE,
    CLAIM,
    PUBLISH,
    RENEW,
    CANCEL,
    REQUEUE_EXPIRED,
    RELEASE,
    MIRROR,
    FORGET,
    ANNOUNCE_POLICY,
)
