"""The scripts that move requests through Redis, typed, without I/O. The Lua is in `lua`.

A builder makes a `Call`; whoever owns a connection runs it and gives the raw reply (bytes, never decoded) to
`Call.parse`. Sent twice, because a reply was lost, a call does its work once.

The fencing rule: a worker may publish for a request only while `CLAIMED_BY` holds the attempt it claimed, and
only tokens that follow those in `TOKENS`. So no token is published twice and none is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from scheduler_worker.protocol import keys, lua
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

# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One run of a script. `keys` routes it to the pool's node; `parse` turns the raw reply into its type."""

    script: lua.Script
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
    """`load` is every class's before this request; `at` is Redis's time; `num_claimed` requests are with workers."""

    accepted: bool
    at: float
    load: dict[str, ClassReserve]
    num_claimed: int = 0


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
    """An entry of `keys.CHANGES`: `claimed` has a worker, `add` a header; a policy's `id` is its version."""

    op: ChangeOp
    id: str
    worker: str = ""
    header: Header | None = None


# --- builders -------------------------------------------------------------------------------------


def reserve(pool: str, request_id: str, class_id: str, cost: float, queue_limit: int) -> Call[Reserved]:
    """Hold `cost` for 5 s unless the class already has `queue_limit` waiting and reserved requests."""
    return _call(
        lua.RESERVE, pool, (request_id, class_id, cost, queue_limit, keys.RESERVATION_TTL_S), _reserved
    )


def unreserve(pool: str, request_id: str) -> Call[bool]:
    """Give a reservation back before it expires; whether there was one."""
    return _call(lua.UNRESERVE, pool, (request_id,), bool)


def enqueue(pool: str, header: Header, payload: Payload) -> Call[int | None]:
    """Let an accepted request wait; its arrival number, or None if it was enqueued before."""
    args = (header.request_id, header.class_id, header.cost, header.gateway)
    return _call(lua.ENQUEUE, pool, (*args, *lua.stored_parts(header), encode(payload)), _arrival_number)


def claim(pool: str, worker: str, request_ids: Iterable[str], lease_s: float) -> Call[tuple[Claimed, ...]]:
    """Take those that still wait, in the order given, and renew the worker's lease."""
    return _call(lua.CLAIM, pool, (worker, lease_s, *request_ids), _claimed)


def publish(pool: str, worker: str, lease_s: float, frames: Mapping[str, Frame]) -> Call[Published]:
    """Append a step's tokens, one frame per gateway (by its id), end finished claims, renew the lease."""
    pairs = (part for gateway, frame in frames.items() for part in (gateway, encode(frame)))
    return _call(lua.PUBLISH, pool, (worker, lease_s, *pairs), _published)


def renew(pool: str, worker: str, lease_s: float) -> Call[dict[str, int]]:
    """Say that the loop makes progress although it published nothing; the claims still held, with attempts."""
    return _call(lua.RENEW, pool, (worker, lease_s), _attempts)


def cancel(pool: str, request_id: str) -> Call[CancelOutcome]:
    """End a waiting request now, or ask the worker that holds it to. A reservation is given back."""
    return _call(lua.CANCEL, pool, (request_id,), lambda reply: CancelOutcome(reply.decode()))


def requeue_expired(pool: str) -> Call[tuple[RequeuedClaim, ...]]:
    """Put the claims of workers whose lease ran out back into the queue; drop expired reservations."""
    return _call(lua.REQUEUE_EXPIRED, pool, (), _requeued)


def release(
    pool: str, worker: str, request_ids: Iterable[str] | None = None
) -> Call[tuple[RequeuedClaim, ...]]:
    """Put these claims of a worker, or all, back into the queue."""
    if request_ids is None:
        return _call(lua.RELEASE, pool, (worker, "all"), _requeued)
    return _call(lua.RELEASE, pool, (worker, "these", *request_ids), _requeued)


def retire(pool: str, worker: str) -> Call[tuple[RequeuedClaim, ...]]:
    """`release` all and end the lease: the worker leaves."""
    return _call(lua.RELEASE, pool, (worker, "leave"), _requeued)


def mirror(pool: str) -> Call[Mirror]:
    """All waiting headers, the live policy, and the change to follow from."""
    return _call(lua.MIRROR, pool, (), _mirror)


def forget(pool: str, gateway: str, request_ids: Iterable[str]) -> Call[int]:
    """Delete what is kept of finished requests, after their finishing row; how many were known."""
    return _call(lua.FORGET, pool, (gateway, *request_ids), int)


def announce_policy(pool: str, announcement: PolicyAnnouncement, force: bool = False) -> Call[bool]:
    """Make a version live unless a newer one is; whether it is. `force`: go back, as after a restore."""
    args = (announcement.version, encode(announcement), int(force))
    return _call(lua.ANNOUNCE_POLICY, pool, args, bool)


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


def _call(script: lua.Script, pool: str, args: tuple[Argument, ...], parse: Callable[[Any], T]) -> Call[T]:
    return Call(script, (keys.HEADERS.of(pool),), (pool, *args), parse)


def _pairs(flat: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _reserved(reply: Any) -> Reserved:
    accepted, at, load, num_claimed = reply
    return Reserved(bool(accepted), float(at), read_class_load(_pairs(load)), int(num_claimed))


def _arrival_number(reply: Any) -> int | None:
    return None if reply is None else int(reply)


def _attempts(reply: Any) -> dict[str, int]:
    return {request_id.decode(): int(attempt) for request_id, attempt in _pairs(reply).items()}


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
