"""Slowing down those who guess passwords: only failures count."""

from __future__ import annotations

from typing import Final

from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from controlplane.common.errors import TooMany

MAX_FAILURES: Final = 10
WINDOW_S: Final = 300


def check_failures(request: Request, username: str) -> None:
    """Raise `TooMany` after too many wrong passwords for this name or from this address."""
    if any(cache.get(key, 0) >= MAX_FAILURES for key in _keys(request, username)):
        raise TooMany(
            f"Too many wrong passwords. Try again in {WINDOW_S // 60} minutes.", retry_after_s=WINDOW_S
        )


def count_failure(request: Request, username: str) -> None:
    """A wrong password: remembered for a few minutes."""
    for key in _keys(request, username):
        cache.add(key, 0, WINDOW_S)
        cache.incr(key)


def _keys(request: Request, username: str) -> tuple[str, str]:
    address = BaseThrottle().get_ident(request)
    return f"sign-in:address:{address}", f"sign-in:name:{username.lower()[:150]}"
