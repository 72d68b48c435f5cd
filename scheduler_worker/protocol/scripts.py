"""The Lua scripts that move requests through Redis, with typed arguments and replies. No I/O.

Each script is atomic and idempotent: sent twice, because a reply was lost, it does its work once. A builder
makes a `Call`; whoever owns a connection runs it and gives the raw reply (bytes, never decoded) to `Call.parse`.

A stored header is plain msgpack whose first three fields have a fixed width, so that Lua can change them in
place: decoding and encoding it there would round the 63-bit block hashes to doubles.

The fencing rule: a worker may publish for a request only while `CLAIMED_BY` holds the attempt that it claimed,
and only tokens that follow those already in `TOKENS`. So no token is published twice and none is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha1
from typing import Any, Final, Generic, TypeVar

import msgspec

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import (
    Frame,
    Header,
    Payload,
    PolicyAnnouncement,
    ProtocolError,
    Requeued,
    decode,
    encode,
)

T = TypeVar("T")
Argument = bytes | str | int | float
_encode = msgspec.msgpack.Encoder().encode

# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Script:
    """Lua text and the SHA-1 that EVALSHA knows it by."""

    name: str
    text: str
    sha: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script. `keys` routes it to the pool's node; `parse` turns the raw reply into its type."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]
    parse: Callable[[Any], T]


# --- replies --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClassReserve:
    """Waiting and reserved requests of a class: how many, and their cost in the policy's token costs."""

    num: int
    cost: float


@dataclass(frozen=True, slots=True)
class Reserved:
    """`load` is every class's before this request; `at` is Redis's time."""

    accepted: bool
    at: float
    load: dict[str, ClassReserve]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A request that is ours now. `payload` is None when it expired: the request can only be failed.

    `token_ids` holds what was published so far, little-endian uint32.
    """

    header: Header
    payload: Payload | None
    token_ids: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """All or nothing: with anything here, nothing was written and the caller sends what is right.

    `lost` requests are no longer ours at that attempt. `stored` tells how many tokens are published for rows
    whose offset does not follow them: fewer (send from there) or more (they were published already).
    """

    lost: tuple[str, ...] = ()
    stored: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the frames were written."""
        return not self.lost and not self.stored


class CancelOutcome(StrEnum):
    """Where the request was: `claimed` means that its worker ends it within a step."""

    UNKNOWN = "unknown"
    WAITING = "waiting"
    CLAIMED = "claimed"


@dataclass(frozen=True, slots=True)
class RequeuedClaim:
    """A claim that became a waiting header again (or ended, if it had been cancelled)."""

    worker: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Mirror:
    """The queue at one instant. `unreadable` says why a stored header was left out."""

    headers: tuple[Header, ...]
    policy: PolicyAnnouncement | None
    last_change_id: str
    unreadable: tuple[ProtocolError, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A value of `keys.CLAIMS`."""

    worker: str
    cancelled: bool
    header: Header


class ChangeOp(StrEnum):
    """What an entry of `keys.CHANGES` says."""

    ADD = "add"
    CLAIMED = "claimed"
    CANCEL = "cancel"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Change:
    """An entry of `keys.CHANGES`; `worker` for `claimed`, `header` for `add`. A policy's `id` is its version."""

    op: ChangeOp
    id: str
    worker: str = ""
    header: Header | None = None


# --- builders -------------------------------------------------------------------------------------


def reserve(pool: str, request_id: str, class_id: str, cost: float, queue_limit: int) -> Call[Reserved]:
    """Hold `cost` for 5 s unless the class already has `queue_limit` waiting and reserved requests."""
    return _call(_RESERVE, pool, (request_id, class_id, cost, queue_limit, keys.RESERVATION_TTL_S), _reserved)


def unreserve(pool: str, request_id: str) -> Call[bool]:
    """Give a reservation back before it expires; whether there was one."""
    return _call(_UNRESERVE, pool, (request_id,), bool)


def enqueue(pool: str, header: Header, payload: Payload) -> Call[int | None]:
    """Let an accepted request wait; its arrival number, or None when it was enqueued before: nothing changes."""
    args = (header.request_id, header.class_id, header.cost, header.gateway)
    return _call(_ENQUEUE, pool, (*args, *_stored_parts(header), encode(payload)), _arrival_number)


def claim(pool: str, worker: str, request_ids: Iterable[str], lease_s: float) -> Call[tuple[Claimed, ...]]:
    """Take those that still wait, in the order given, and renew the worker's lease."""
    return _call(_CLAIM, pool, (worker, lease_s, *request_ids), _claimed)


def publish(pool: str, worker: str, lease_s: float, frames: Mapping[str, Frame]) -> Call[Published]:
    """Append a step's tokens, one frame per gateway (by its id), end finished claims, renew the lease."""
    pairs = (part for gateway, frame in frames.items() for part in (gateway, encode(frame)))
    return _call(_PUBLISH, pool, (worker, lease_s, *pairs), _published)


def renew(pool: str, worker: str, lease_s: float) -> Call[None]:
    """Say that the loop makes progress although it published nothing."""
    return _call(_RENEW, pool, (worker, lease_s), _nothing)


def cancel(pool: str, request_id: str) -> Call[CancelOutcome]:
    """End a waiting request now, or ask the worker that holds it to. A reservation is given back."""
    return _call(_CANCEL, pool, (request_id,), lambda reply: CancelOutcome(reply.decode()))


def requeue_expired(pool: str) -> Call[tuple[RequeuedClaim, ...]]:
    """Put the claims of workers whose lease ran out back into the queue; drop expired reservations."""
    return _call(_REQUEUE_EXPIRED, pool, (), _requeued)


def release(
    pool: str, worker: str, request_ids: Iterable[str] | None = None
) -> Call[tuple[RequeuedClaim, ...]]:
    """Put these claims of a worker, or all, back into the queue."""
    if request_ids is None:
        return _call(_RELEASE, pool, (worker, "all"), _requeued)
    return _call(_RELEASE, pool, (worker, "these", *request_ids), _requeued)


def retire(pool: str, worker: str) -> Call[tuple[RequeuedClaim, ...]]:
    """`release` all and end the lease: the worker leaves."""
    return _call(_RELEASE, pool, (worker, "leave"), _requeued)


def mirror(pool: str) -> Call[Mirror]:
    """All waiting headers, the live policy, and the change to follow from."""
    return _call(_MIRROR, pool, (), _mirror)


def forget(pool: str, gateway: str, request_ids: Iterable[str]) -> Call[int]:
    """Delete what is kept of finished requests, after their finishing row; how many were known."""
    return _call(_FORGET, pool, (gateway, *request_ids), int)


def announce_policy(pool: str, announcement: PolicyAnnouncement, force: bool = False) -> Call[bool]:
    """Make a version live unless a newer one is; whether it is. `force` also goes back: Postgres was restored."""
    args = (announcement.version, encode(announcement), int(force))
    return _call(_ANNOUNCE_POLICY, pool, args, bool)


# --- reading what the scripts wrote ---------------------------------------------------------------


def read_change(fields: Mapping[bytes, bytes]) -> Change:
    """An entry of `keys.CHANGES`; raises `ProtocolError` for one of another build."""
    try:
        op = ChangeOp(fields[b"op"].decode())
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"not a change of the queue: {dict(fields)!r}") from error
    header = decode(Header, fields[b"header"]) if b"header" in fields else None
    return Change(op, fields[b"id"].decode(), fields.get(b"worker", b"").decode(), header)


def read_output(fields: Mapping[bytes, bytes]) -> Frame | Requeued:
    """An entry of a gateway's output stream; raises `ProtocolError`."""
    if b"frame" in fields:
        return decode(Frame, fields[b"frame"])
    if b"requeued" in fields:
        return decode(Requeued, fields[b"requeued"])
    raise ProtocolError(f"not an entry of an output stream: {sorted(fields)!r}")


def read_claim(data: bytes) -> Claim:
    """A value of `keys.CLAIMS`: a flag, the length of the worker's id, the id, the header."""
    end = 2 + data[1]
    return Claim(data[2:end].decode(), data[0] == 1, decode(Header, data[end:]))


def read_class_load(fields: Mapping[bytes, bytes]) -> dict[str, ClassReserve]:
    """All of `keys.CLASS_LOAD`, by class."""
    classes = [name[: -len(":num")] for name in map(bytes.decode, fields) if name.endswith(":num")]
    return {
        class_id: ClassReserve(
            num=int(fields[f"{class_id}:num".encode()]),
            cost=float(fields.get(f"{class_id}:cost".encode(), b"0")),
        )
        for class_id in classes
    }


# --- parsers --------------------------------------------------------------------------------------


def _call(script: Script, pool: str, args: tuple[Argument, ...], parse: Callable[[Any], T]) -> Call[T]:
    return Call(script, (keys.HEADERS.of(pool),), (pool, *args), parse)


def _nothing(reply: Any) -> None:
    return None


def _pairs(flat: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _reserved(reply: Any) -> Reserved:
    accepted, at, load = reply
    return Reserved(bool(accepted), float(at), read_class_load(_pairs(load)))


def _arrival_number(reply: Any) -> int | None:
    return None if reply is None else int(reply)


def _claimed(reply: Any) -> tuple[Claimed, ...]:
    return tuple(
        Claimed(decode(Header, header), decode(Payload, payload) if payload else None, tokens)
        for header, payload, tokens in reply
    )


def _published(reply: Any) -> Published:
    lost, stored = reply
    return Published(
        tuple(one.decode() for one in lost), {one.decode(): int(num) for one, num in _pairs(stored).items()}
    )


def _requeued(reply: Any) -> tuple[RequeuedClaim, ...]:
    return tuple(RequeuedClaim(worker.decode(), request_id.decode()) for worker, request_id in reply)


def _mirror(reply: Any) -> Mirror:
    stored, policy, last_id = reply
    headers: list[Header] = []
    unreadable: list[ProtocolError] = []
    for data in stored:
        try:
            headers.append(decode(Header, data))
        except ProtocolError as error:
            unreadable.append(error)
    headers.sort(key=lambda header: header.arrival_number)
    live = decode(PolicyAnnouncement, policy) if policy else None
    return Mirror(tuple(headers), live, last_id.decode(), tuple(unreadable))


# --- the stored form of a header ------------------------------------------------------------------

_FIXED_FIELDS: Final = (
    ("arrival_number", b"\xcf", 8),
    ("attempt", b"\xce", 4),
    ("num_generated_tokens", b"\xce", 4),
)
_MAP_MARK: Final = b"\xde"


def _stored_parts(header: Header) -> tuple[bytes, bytes]:
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
    """Every key as a Lua local, made from the table in `keys`; one with a second part ends where that begins."""
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


_RESERVE: Final = _script(
    "reserve",
    """
local id, class_id, cost, limit, ttl_s = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
drop_expired_reservations()
local load, at = redis.call('HGETALL', CLASS_LOAD), now()
local function reply(accepted) return {accepted, string.format('%.6f', at), load} end
if redis.call('HEXISTS', RESERVATIONS, id) == 1 then return reply(1) end
if redis.call('EXISTS', PAYLOAD .. id) == 1 then return reply(1) end
if tonumber(redis.call('HGET', CLASS_LOAD, class_id .. ':num') or 0) >= limit then return reply(0) end
redis.call('HSET', RESERVATIONS, id, cost .. ' ' .. class_id)
redis.call('ZADD', RESERVATION_ENDS, string.format('%.6f', at + ttl_s), id)
add_load(class_id, 1, tonumber(cost))
return reply(1)
""",
)

_UNRESERVE: Final = _script("unreserve", "return drop_reservation(ARGV[2]) and 1 or 0")

_ENQUEUE: Final = _script(
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

_CLAIM: Final = _script(
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

_PUBLISH: Final = _script(
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

_RENEW: Final = _script("renew", "renew_lease(ARGV[2], ARGV[3])")

_CANCEL: Final = _script(
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

_REQUEUE_EXPIRED: Final = _script(
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

_RELEASE: Final = _script(
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

_MIRROR: Final = _script(
    "mirror",
    """
local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)
return {redis.call('HVALS', HEADERS), redis.call('GET', POLICY) or '', last[1] and last[1][1] or '0-0'}
""",
)

_FORGET: Final = _script(
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

_ANNOUNCE_POLICY: Final = _script(
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
    _RESERVE,
    _UNRESERVE,
    _ENQUEUE,
    _CLAIM,
    _PUBLISH,
    _RENEW,
    _CANCEL,
    _REQUEUE_EXPIRED,
    _RELEASE,
    _MIRROR,
    _FORGET,
    _ANNOUNCE_POLICY,
)
