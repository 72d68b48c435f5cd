"""Token ids as they are stored: little-endian uint32, whatever the machine's own order."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable


def pack(token_ids: Iterable[int]) -> bytes:
    """Token ids as bytes."""
    return _little_endian(array("I", token_ids)).tobytes()


def unpack(data: bytes | None) -> array[int]:
    """Token ids of stored bytes; none of nothing."""
    token_ids = array("I")
    token_ids.frombytes(data or b"")
    return _little_endian(token_ids)


def _little_endian(token_ids: array[int]) -> array[int]:
    if sys.byteorder == "big":
        token_ids.byteswap()
    return token_ids
