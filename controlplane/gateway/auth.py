"""API keys: who sends, for which tenant, in which classes. A key's facts are cached for 5 s."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from controlplane.tenants.selectors import KeyInfo, find_key
from scheduler_worker.core.policy import ClassPolicy, Policy

from .database import DatabaseThreads
from .errors import BadRequest, Forbidden, Unauthenticated

logger = logging.getLogger(__name__)
CACHE_S: Final = 5.0
RENEW_BEFORE_S: Final = 2.0
MAX_CACHED: Final = 10_000
MAX_TOKEN_CHARACTERS: Final = 512
NO_KEY: Final = 'No API key. Send "Authorization: Bearer <key>".'


class Keys:
    """Looks keys up by their text; remembers the answer, also a "no", for `CACHE_S`."""

    def __init__(self, threads: DatabaseThreads, find: Callable[[str], KeyInfo | None] = find_key) -> None:
        self._threads = threads
        self._find = find
        self._cache: OrderedDict[bytes, tuple[float, KeyInfo | None]] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[KeyInfo | None]] = {}

    async def authenticate(self, authorization: bytes | None) -> KeyInfo:
        """The key of an `Authorization` header; raises `Unauthenticated`."""
        token = _bearer_token(authorization)
        digest = hashlib.sha256(token.encode()).digest()
        cached, now = self._cache.get(digest), time.monotonic()
        if cached is None or cached[0] < now:
            info = await asyncio.shield(self._lookup(digest, token))
        else:
            info = cached[1]
            if cached[0] - RENEW_BEFORE_S < now:
                self._renew(digest, token)
        if info is None:
            raise Unauthenticated("This API key is not valid: unknown, expired or revoked.")
        return info

    def _renew(self, digest: bytes, token: str) -> None:
        """Look a key in use up again before its facts are too old: nobody waits for it."""
        if digest not in self._running:
            self._lookup(digest, token).add_done_callback(_note_failure)

    def _lookup(self, digest: bytes, token: str) -> asyncio.Task[KeyInfo | None]:
        """One query however many requests wait for it."""
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.create_task(self._query(digest, token))
        return task

    async def _query(self, digest: bytes, token: str) -> KeyInfo | None:
        try:
            info = await self._threads.run(self._find, token)
        finally:
            self._running.pop(digest, None)
        self._cache[digest] = (time.monotonic() + CACHE_S, info)
        self._cache.move_to_end(digest)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return info


def _note_failure(task: asyncio.Task[KeyInfo | None]) -> None:
    """Whoever comes once the facts are too old asks again, and is told."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a key could not be looked up again: %s", error)


def _bearer_token(authorization: bytes | None) -> str:
    if authorization is None:
        raise Unauthenticated(NO_KEY)
    scheme, _, token = authorization.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token or len(token) > MAX_TOKEN_CHARACTERS or b"\0" in token:
        raise Unauthenticated(NO_KEY)
    return token.decode("latin-1")


def choose_class(key: KeyInfo, policy: Policy, asked: str | None) -> ClassPolicy:
    """The class of a request: the body's, else the key's, else the policy's default.

    Raises:
        BadRequest: no class of the policy has the name that was asked for.
        Forbidden: the key is not allowed that class.
    """
    if asked is None:
        return _default_class(key, policy)
    try:
        chosen = policy.find(asked)
    except KeyError:
        names = ", ".join(one.id for one in policy.classes)
        raise BadRequest(
            f"priority: {asked!r} is not a class; this pool has {names}.",
            code="unknown_class",
            param="priority",
        ) from None
    allowed = key.allowed_classes | {_default_class(key, policy).id}
    if asked not in allowed and chosen.id not in allowed:
        raise Forbidden(
            f"This key may not use the class {asked}; it may use {', '.join(sorted(allowed))}.",
            code="class_not_allowed",
            param="priority",
        )
    return chosen


def _default_class(key: KeyInfo, policy: Policy) -> ClassPolicy:
    for name in (key.default_class, policy.default_class):
        try:
            if name:
                return policy.find(name)
        except KeyError:
            continue
    return policy.least_urgent()
