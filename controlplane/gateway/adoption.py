"""Finishing what a dead gateway accepted: its clients are gone, its promise that every request ends is not.

What was published is in the tokens' keys, what follows in the dead gateway's output stream, stop strings in
the request's row. Answers are built as usual, and their completion records written.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from typing import Any

import redis.asyncio

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import Header, Payload, ProtocolError, decode

from .answer import Answer, AnswerRules
from .live import LiveRequest
from .tokenizer import TextModel

logger = logging.getLogger(__name__)
Parameters = Mapping[str, Mapping[str, Any]]


async def owned_headers(client: redis.asyncio.Redis, pool: str, gateway: str) -> list[Header]:
    """What a gateway accepted and did not finish."""
    stored: dict[Any, Any] = await client.hgetall(keys.OWNED.of(pool, gateway))
    headers: list[Header] = []
    for request_id, data in stored.items():
        try:
            headers.append(decode(Header, data))
        except ProtocolError as error:
            logger.error("request %s of %s cannot be read: %s", request_id.decode(), gateway, error)
    return headers


async def rebuild(
    client: redis.asyncio.Redis, pool: str, headers: list[Header], parameters: Parameters, model: TextModel
) -> list[LiveRequest]:
    """The requests with the text that was published so far."""
    ids = [header.request_id for header in headers]
    if not ids:
        return []
    payloads: list[Any] = await client.mget([keys.PAYLOAD.of(pool, one) for one in ids])
    tokens: list[Any] = await client.mget([keys.TOKENS.of(pool, one) for one in ids])
    rules = [_rules(parameters.get(one, {}), data) for one, data in zip(ids, payloads, strict=True)]
    return [
        _adopt(header, Answer(model.vocabulary, rule, model.eos_ids), published)
        for header, rule, published in zip(headers, rules, tokens, strict=True)
    ]


def unpack(published: bytes | None) -> array[int]:
    """Token ids of a `keys.TOKENS` value."""
    data = published or b""
    return array("I", [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)])


def _adopt(header: Header, answer: Answer, published: bytes | None) -> LiveRequest:
    answer.fill(unpack(published))
    return LiveRequest(header=header, answer=answer, gateway=header.gateway, is_adopted=True)


def _rules(parameters: Mapping[str, Any], payload: bytes | None) -> AnswerRules:
    stop = parameters.get("stop") or ()
    min_tokens = decode(Payload, payload).sampling.min_tokens if payload is not None else 0
    return AnswerRules(stop=(stop,) if isinstance(stop, str) else tuple(stop), min_tokens=min_tokens)
