"""Finishing what a dead gateway accepted: its clients are gone, its promise that every request ends is not.

What was published is in the tokens' keys, what follows in the dead gateway's output stream, stop strings in
the request's row. Answers are built as usual, and their completion records written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import redis.asyncio

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import Header, Payload, ProtocolError, decode
from scheduler_worker.protocol.token_bytes import unpack

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
    stored = [decode(Payload, data) if data is not None else None for data in payloads]
    return [
        _adopt(header, payload, _rules(parameters.get(header.request_id, {}), payload), published, model)
        for header, payload, published in zip(headers, stored, tokens, strict=True)
    ]


def _adopt(
    header: Header, payload: Payload | None, rules: AnswerRules, published: bytes | None, model: TextModel
) -> LiveRequest:
    answer = Answer(model.vocabulary, rules, model.eos_ids)
    answer.fill(unpack(published))
    return LiveRequest(header=header, answer=answer, gateway=header.gateway, payload=payload, is_adopted=True)


def _rules(parameters: Mapping[str, Any], payload: Payload | None) -> AnswerRules:
    stop = parameters.get("stop") or ()
    min_tokens = payload.sampling.min_tokens if payload is not None else 0
    return AnswerRules(stop=(stop,) if isinstance(stop, str) else tuple(stop), min_tokens=min_tokens)
