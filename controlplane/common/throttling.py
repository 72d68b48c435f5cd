"""Slowing down those who guess passwords, without letting them lock out whom they guess: only failures count.

Three bounds within a few minutes: few failures for one name from one address, more from one address for any names,
more still for one name from all addresses together, so that many addresses do not help. The last does not stop an
address from which that name has signed in of late.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from controlplane.common.errors import TooMany

WINDOW_S: Final = 300
MAX_PER_NAME_AND_ADDRESS: Final = 10
MAX_PER_ADDRESS: Final = 30
MAX_PER_NAME: Final = 100
KNOWN_S: Final = 30 * 24 * 3600


class _Bound(NamedTuple):
    key: str
    most: int


def check_failures(request: Request, username: str) -> None:
    """Raise `TooMany` after too many wrong passwords for this name, from this address or from all together."""
    if any(cache.get(bound.key, 0) >= bound.most for bound in _bounds(request, username)):
        raise TooMany(
            f"Too many wrong passwords. Try again in {WINDOW_S // 60} minutes.", retry_after_s=WINDOW_S
        )


def count_failure(request: Request, username: str) -> None:
    """A wrong password: remembered for a few minutes."""
    for bound in _bounds(request, username):
        cache.add(bound.key, 0, WINDOW_S)
        cache.incr(bound.key)


def remember_success(request: Request, username: str) -> None:
    """The right password: this address is known for this name."""
    cache.set(_known_key(request, username), True, KNOWN_S)


def _bounds(request: Request, username: str) -> tuple[_Bound, ...]:
    address, name = _address(request), _name(username)
    own = (
        _Bound(f"sign-in:both:{address}:{name}", MAX_PER_NAME_AND_ADDRESS),
        _Bound(f"sign-in:address:{address}", MAX_PER_ADDRESS),
    )
    if cache.get(_known_key(request, username)):
        return own
    return (*own, _Bound(f"sign-in:name:{name}", MAX_PER_NAME))


def _known_key(request: Request, username: str) -> str:
    return f"sign-in:known:{_address(request)}:{_name(username)}"


def _address(request: Request) -> str:
    return str(BaseThrottle().get_ident(request))


def _name(username: str) -> str:
    return username.lower()[:150]
