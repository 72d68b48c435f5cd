"""The bodies of `/v1/chat/completions` and `/v1/completions`: parameters are honoured, or refused by name.

A parameter that this gateway cannot honour is accepted only with the value that means "off". Unknown ones are
refused too. Extensions beyond OpenAI's API:

    priority            the priority class, one that the key is allowed
    top_k, min_p        further cuts of the distribution; 0 is off
    repetition_penalty  divides the logits of tokens already seen, prompt included; 1 is off
    min_tokens          neither EOS nor a stop string ends the answer earlier
    ignore_eos          go on to max_tokens
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct

from scheduler_worker.protocol.messages import SamplingParams

from .errors import BadRequest

MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 1000
DEFAULT_COMPLETION_TOKENS: Final = 16  # OpenAI's default for /v1/completions
MAX_SEED: Final = 2**63 - 1
LEAST_TOP_P: Final = 1e-6  # OpenAI accepts 0; it means the likeliest token alone

Count = Annotated[int, Meta(ge=1, le=100_000_000)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Text = Annotated[str, Meta(min_length=1)]
Label = Annotated[str, Meta(max_length=512)]


class StreamOptions(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """OpenAI's `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ContentPart(Struct, forbid_unknown_fields=True):
    """One part of a message's content; only text."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None
    prompt_cache_breakpoint: Any = None


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: Any = None
    refusal: Any = None
    audio: Any = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    annotations: Any = None


class _Body(Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What both endpoints have in common."""

    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: str | list[str] | None = None
    user: Label | None = None
    max_tokens: Count | None = None
    n: Any = None

    priority: Text | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None
    ignore_eos: bool | None = None


class ChatBody(_Body, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Label], Meta(max_length=16)] | None = None
    safety_identifier: Label | None = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class CompletionBody(_Body, kw_only=True):
    """`POST /v1/completions`. `prompt` is one text, or one list of token ids, or a list with one of these."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Any = None
    suffix: Any = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a parameter is refused, and the values that are accepted because they ask for nothing."""

    why: str
    accepted: tuple[Any, ...] = ()


_TOOLS: Final = "tools are not supported"
_ONE: Final = "one choice per request; send several requests instead"
REFUSED: Final[Mapping[str, Refusal]] = {
    "n": Refusal(_ONE, (1,)),
    "best_of": Refusal(_ONE, (1,)),
    "suffix": Refusal("insertion is not supported", ("",)),
    "tools": Refusal(_TOOLS, ([],)),
    "tool_choice": Refusal(_TOOLS, ("none",)),
    "parallel_tool_calls": Refusal(_TOOLS),
    "functions": Refusal(_TOOLS, ([],)),
    "function_call": Refusal(_TOOLS, ("none",)),
    "response_format": Refusal('only {"type": "text"} is supported', ({"type": "text"},)),
    "modalities": Refusal('only ["text"] is supported', (["text"],)),
    "audio": Refusal("audio is not supported"),
    "prediction": Refusal("predicted outputs are not supported"),
    "moderation": Refusal("moderation is not supported"),
    "prompt_cache_key": Refusal("prefixes are cached by their content, without a key"),
    "prompt_cache_options": Refusal("prefixes are cached by their content, without options"),
    "prompt_cache_retention": Refusal("prefixes are cached while there is room"),
    "reasoning_effort": Refusal("the model has no reasoning effort", ("none",)),
    "verbosity": Refusal("the model has no verbosity"),
    "service_tier": Refusal("choose a class with `priority` instead", ("auto", "default")),
    "store": Refusal("what is kept is the tenant's setting", (False,)),
    "web_search_options": Refusal("web search is not supported"),
}
ROLES: Final = ("system", "developer", "user", "assistant")
_MESSAGE_REFUSED: Final = (
    "name",
    "refusal",
    "audio",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "annotations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A valid body in the gateway's terms. Exactly one of `messages`, `text`, `token_ids` is set.

    `max_tokens` is None where the client gave none: then `default_max_tokens` counts, else what the context
    leaves. `parameters` is the body without the prompt.
    """

    model: str
    prompt: Any
    parameters: dict[str, Any]
    sampling: SamplingParams
    messages: tuple[dict[str, str], ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    max_tokens_param: str = "max_tokens"
    default_max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    echo: bool = False
    priority: str | None = None

    @property
    def is_chat(self) -> bool:
        """Whether the prompt goes through the chat template."""
        return bool(self.messages)


B = TypeVar("B", ChatBody, CompletionBody)
_CHAT: Final = msgspec.json.Decoder(ChatBody)
_COMPLETION: Final = msgspec.json.Decoder(CompletionBody)
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_PLACE: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")


def read_chat(data: bytes) -> Asked:
    """A chat body; raises `BadRequest` that names the parameter."""
    body = _decode(_CHAT, data)
    _refuse_unsupported(body)
    messages = tuple(_message(index, one) for index, one in enumerate(body.messages))
    limit, limit_name = _chat_limit(body)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true.", code="invalid_value", param="top_logprobs")
    return Asked(
        **_common(body),
        prompt=list(messages),
        messages=messages,
        sampling=_sampling(body, (body.top_logprobs or 0) if body.logprobs else None),
        max_tokens=limit,
        max_tokens_param=limit_name,
    )


def read_completion(data: bytes) -> Asked:
    """A text completion body; raises `BadRequest` that names the parameter."""
    body = _decode(_COMPLETION, data)
    _refuse_unsupported(body)
    if body.echo and body.logprobs is not None:
        why = "the prompt has no logprobs"
        raise BadRequest(
            f"echo with logprobs is not supported: {why}.", code="unsupported_parameter", param="echo"
        )
    prompt = _single_prompt(body.prompt)
    return Asked(
        **_common(body),
        prompt=prompt,
        text=_checked_text("prompt", prompt) if isinstance(prompt, str) else None,
        token_ids=None if isinstance(prompt, str) else tuple(prompt),
        sampling=_sampling(body, body.logprobs),
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        echo=bool(body.echo),
    )


def _decode(decoder: msgspec.json.Decoder[B], data: bytes) -> B:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _in_words(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is not JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.", code="invalid_json") from None


def _in_words(problem: str) -> BadRequest:
    """msgspec's message with the parameter that it is about."""
    found = _PLACE.search(problem)
    place = found[1] if found else ""
    what = problem[: found.start()] if found else problem
    if unknown := _UNKNOWN.search(what):
        name = f"{place}.{unknown[1]}".lstrip(".")
        return BadRequest(f"{name} is not a parameter of this API.", code="unknown_parameter", param=name)
    if missing := _MISSING.search(what):
        name = f"{place}.{missing[1]}".lstrip(".")
        return BadRequest(f"{name} is required.", code="missing_required_parameter", param=name)
    prefix = f"{place}: " if place else "The body: "
    return BadRequest(f"{prefix}{what[0].lower()}{what[1:]}.", code="invalid_value", param=place or None)


def _refuse_unsupported(body: ChatBody | CompletionBody) -> None:
    for name, refusal in REFUSED.items():
        value = getattr(body, name, None)
        if value is not None and not any(
            value == one and type(value) is type(one) for one in refusal.accepted
        ):
            raise BadRequest(f"{name}: {refusal.why}.", code="unsupported_parameter", param=name)
    options = body.stream_options
    if options is not None and options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise BadRequest(f"{name}: obfuscation is not supported.", code="unsupported_parameter", param=name)
    if options is not None and not body.stream:
        raise BadRequest("stream_options needs stream: true.", code="invalid_value", param="stream_options")


def _common(body: ChatBody | CompletionBody) -> dict[str, Any]:
    for name, value in _labels(body):
        _checked_text(name, value)
    return {
        "model": body.model,
        "parameters": _without_prompt(body),
        "stop": _stops(body.stop),
        "stream": bool(body.stream),
        "include_usage": body.stream_options is not None and bool(body.stream_options.include_usage),
        "priority": body.priority,
    }


def _labels(body: ChatBody | CompletionBody) -> Iterator[tuple[str, str]]:
    yield "user", body.user or ""
    yield "priority", body.priority or ""
    if isinstance(body, ChatBody):
        yield "safety_identifier", body.safety_identifier or ""
        for key, value in (body.metadata or {}).items():
            yield "metadata", key + value


def _without_prompt(body: ChatBody | CompletionBody) -> dict[str, Any]:
    given: dict[str, Any] = msgspec.to_builtins(body)
    given.pop("messages", None)
    given.pop("prompt", None)
    return {name: value for name, value in given.items() if value is not None}


def _sampling(body: ChatBody | CompletionBody, logprobs: int | None) -> SamplingParams:
    """`max_tokens` is settled later, when the prompt's length is known."""
    return SamplingParams(
        temperature=_or(body.temperature, 1.0),
        top_p=max(_or(body.top_p, 1.0), LEAST_TOP_P),
        top_k=max(_or(body.top_k, 0), 0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        logit_bias=_logit_bias(body.logit_bias or {}),
        seed=body.seed,
        logprobs=logprobs,
        min_tokens=_or(body.min_tokens, 0),
        ignore_eos=bool(body.ignore_eos),
    )


N = TypeVar("N", int, float)


def _or(value: N | None, default: N) -> N:
    return default if value is None else value


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise BadRequest(
                f"logit_bias: {key!r} is not a token id.", code="invalid_value", param="logit_bias"
            )
    return {int(key): value for key, value in given.items()}


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MAX_STOPS:
        raise BadRequest(
            f"stop: {len(stops)} strings; at most {MAX_STOPS}.", code="invalid_value", param="stop"
        )
    for one in stops:
        if not one or len(one) > MAX_STOP_CHARACTERS:
            raise BadRequest(
                f"stop: each string needs 1 to {MAX_STOP_CHARACTERS} characters; one has {len(one)}.",
                code="invalid_value",
                param="stop",
            )
        _checked_text("stop", one)
    return stops


def _chat_limit(body: ChatBody) -> tuple[int | None, str]:
    """`max_completion_tokens`, or the older `max_tokens`; both only if they agree."""
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise BadRequest(
            f"max_tokens ({old}) and max_completion_tokens ({new}) disagree; give one of them.",
            code="invalid_value",
            param="max_tokens",
        )
    return (new, "max_completion_tokens") if new is not None else (old, "max_tokens")


def _message(index: int, one: ChatMessage) -> dict[str, str]:
    path = f"messages[{index}]"
    if one.role not in ROLES:
        why = f"{_TOOLS}" if one.role in ("tool", "function") else f"use one of {', '.join(ROLES)}"
        raise BadRequest(f"{path}.role: {one.role!r}: {why}.", code="invalid_value", param=f"{path}.role")
    for name in _MESSAGE_REFUSED:
        if getattr(one, name) not in (None, []):
            raise BadRequest(
                f"{path}.{name} is not supported.", code="unsupported_parameter", param=f"{path}.{name}"
            )
    role = "system" if one.role == "developer" else one.role
    return {"role": role, "content": _content(f"{path}.content", one.content)}


def _content(path: str, content: str | list[ContentPart] | None) -> str:
    """A message's text; parts are joined by line breaks."""
    if content is None or content == []:
        raise BadRequest(f"{path} is required.", code="missing_required_parameter", param=path)
    if isinstance(content, str):
        return _checked_text(path, content)
    return "\n".join(_part(f"{path}[{index}]", part) for index, part in enumerate(content))


def _part(path: str, part: ContentPart) -> str:
    others = (part.image_url, part.input_audio, part.file, part.refusal, part.prompt_cache_breakpoint)
    if part.type != "text" or part.text is None or any(one is not None for one in others):
        raise BadRequest(
            f'{path}: only {{"type": "text", "text": "…"}} is supported.',
            code="unsupported_parameter",
            param=path,
        )
    return _checked_text(path, part.text)


def _single_prompt(prompt: str | list[Any]) -> str | list[int]:
    """The one prompt of a body; several are refused, as several choices are."""
    if isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    elif isinstance(prompt, list) and len(prompt) > 1:
        raise BadRequest(f"prompt: {_ONE}.", code="unsupported_parameter", param="prompt")
    return prompt


def _checked_text(path: str, text: str) -> str:
    """Text that a tokenizer and a database can hold: no U+0000, no half of a surrogate pair."""
    if "\0" in text:
        raise BadRequest(f"{path} contains the character U+0000.", code="invalid_value", param=path)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRequest(
                f"{path} contains half of a surrogate pair.", code="invalid_value", param=path
            ) from None
    return text
