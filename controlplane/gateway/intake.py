"""From a valid body to what is queued: exact token counts, limits, header and payload. No I/O."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import msgspec

from scheduler_worker.core.policy import ClassPolicy
from scheduler_worker.protocol.hashing import block_hashes
from scheduler_worker.protocol.messages import SamplingParams
from scheduler_worker.protocol.token_bytes import pack

from .chat_template import TemplateRefused
from .errors import BadRequest
from .schema import Asked
from .tokenizer import TextModel

LONG_TEXT: Final = 4_000  # characters; tokenizing more would hold up the other streams
LONG_PROMPT: Final = 4_000  # tokens; so would hashing more
TOO_LONG: Final = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Sized:
    """A request whose tokens are counted and whose `max_tokens` is settled."""

    token_ids: list[int]
    sampling: SamplingParams
    _hashes: dict[int, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def max_tokens(self) -> int:
        return self.sampling.max_tokens

    def packed(self) -> bytes:
        """The prompt as it is stored."""
        return pack(self.token_ids)

    def hashes(self, block_size: int | None) -> tuple[int, ...]:
        """The prompt's block hashes, where a worker said how large its blocks are."""
        if not block_size:
            return ()
        if block_size not in self._hashes:
            self._hashes[block_size] = block_hashes(self.token_ids, block_size)
        return self._hashes[block_size]


async def measure(
    asked: Asked, model: TextModel, rules: ClassPolicy, context: int, block_size: int | None = None
) -> Sized:
    """Tokenize and settle the lengths; raises `BadRequest`. What is long is tokenized and hashed in a thread."""
    long = (asked.text or "") if not asked.is_chat else "".join(one["content"] for one in asked.messages)
    if len(long) > LONG_TEXT:
        token_ids = await asyncio.to_thread(_encode, asked, model)
    else:
        token_ids = _encode(asked, model)
    _check_tokens(asked, token_ids, model)
    limit = _output_limit(asked, len(token_ids), rules, context)
    if asked.sampling.min_tokens > limit:
        raise BadRequest(
            f"min_tokens ({asked.sampling.min_tokens}) is above the answer's limit of {limit} tokens.",
            code="invalid_value",
            param="min_tokens",
        )
    sized = Sized(token_ids, msgspec.structs.replace(asked.sampling, max_tokens=limit))
    if len(token_ids) > LONG_PROMPT:
        await asyncio.to_thread(sized.hashes, block_size)
    return sized


def _encode(asked: Asked, model: TextModel) -> list[int]:
    if asked.token_ids is not None:
        return list(asked.token_ids)
    if asked.text is not None:
        return model.encode_prompt(asked.text) if asked.text else []
    try:
        return model.encode_chat(asked.messages)
    except TemplateRefused as error:
        raise BadRequest(
            f"messages: the model's chat template refused them: {error}.",
            code="invalid_value",
            param="messages",
        ) from None


def _check_tokens(asked: Asked, token_ids: list[int], model: TextModel) -> None:
    name = "messages" if asked.is_chat else "prompt"
    if not token_ids:
        raise BadRequest(
            f"{name}: the prompt is empty; it needs at least one token.", code="empty_prompt", param=name
        )
    size = model.vocabulary.size
    if asked.token_ids is not None and not 0 <= min(token_ids) <= max(token_ids) < size:
        raise BadRequest(f"prompt: token ids go from 0 to {size - 1}.", code="invalid_value", param="prompt")
    if any(one >= size for one in asked.sampling.logit_bias):
        raise BadRequest(
            f"logit_bias: token ids go from 0 to {size - 1}.", code="invalid_value", param="logit_bias"
        )


def _output_limit(asked: Asked, num_prompt: int, rules: ClassPolicy, context: int) -> int:
    """The settled `max_tokens`: what was asked, else what context and class leave."""
    name = "messages" if asked.is_chat else "prompt"
    longest = min(context - 1, rules.max_prompt_tokens or context)
    if num_prompt > longest:
        whose = "the model's context" if longest == context - 1 else f"the class {rules.id}"
        raise BadRequest(
            f"{name}: the prompt has {num_prompt} tokens; {whose} allows {longest} and one of answer.",
            code=TOO_LONG,
            param=name,
        )
    most = rules.max_output_tokens or context
    room = min(context - num_prompt, most, asked.default_max_tokens or context)
    asked_for = room if asked.max_tokens is None else asked.max_tokens
    if asked_for > most:
        raise BadRequest(
            f"{asked.max_tokens_param}: {asked_for}; the class {rules.id} allows {most}.",
            code="invalid_value",
            param=asked.max_tokens_param,
        )
    if num_prompt + asked_for > context:
        raise BadRequest(
            f"{asked.max_tokens_param}: the prompt's {num_prompt} tokens and {asked_for} of answer make "
            f"{num_prompt + asked_for}; the model's context has {context}.",
            code=TOO_LONG,
            param=asked.max_tokens_param,
        )
    return asked_for
