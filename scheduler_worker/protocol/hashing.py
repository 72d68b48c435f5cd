"""Hashes of token blocks, the same in every process: the identity of a cached prefix."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_ROOT = b"\0" * 8


def block_hashes(token_ids: Sequence[int], block_size: int, salt: str = "") -> tuple[int, ...]:
    """One 63-bit hash per full block; each covers all tokens up to the end of its block.

    `salt` separates those who must not share a prefix (a tenant that asks for isolation).
    """
    parent = root(salt)
    hashes: list[int] = []
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = chain(parent, token_ids[end - block_size : end])
        hashes.append(as_int(parent))
    return tuple(hashes)


def chain(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The 8-byte hash of a block, given its parent's."""
    block = array("I", token_ids)
    return blake2b(parent + block.tobytes(), digest_size=8).digest()


def as_int(digest: bytes) -> int:
    """The digest as a non-negative integer that fits a signed 64-bit field."""
    return int.from_bytes(digest, "little") >> 1


def root(salt: str = "") -> bytes:
    """The parent of a sequence's first block."""
    return _ROOT if not salt else blake2b(salt.encode(), digest_size=8).digest()
