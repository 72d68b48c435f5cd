"""Every parameter of OpenAI's API is honoured, or refused by its name."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from controlplane.gateway.errors import BadRequest
from controlplane.gateway.schema import REFUSED, Asked, ChatBody, CompletionBody, read_chat, read_completion

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "m", "prompt": "Hi"}
Reader = Callable[[bytes], Asked]


def chat(**fields: Any) -> Asked:
    return read_chat(json.dumps(CHAT | fields).encode())


def text(**fields: Any) -> Asked:
    return read_completion(json.dumps(TEXT | fields).encode())


def refusal(read: Callable[..., Asked], **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (chat_params.CompletionCreateParamsStreaming, ChatBody),
        (completion_params.CompletionCreateParamsStreaming, CompletionBody),
    ],
    ids=["chat", "text"],
)
def test_every_parameter_of_the_openai_package_is_known(theirs: type, ours: type) -> None:
    assert set(typing.get_type_hints(theirs)) <= set(ours.__struct_fields__)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(ChatBody.__struct_fields__)))
def test_a_chat_parameter_that_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    assert refusal(chat, **{name: {"anything": "else"}}).param == name


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(CompletionBody.__struct_fields__)))
def test_a_text_parameter_that_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    assert refusal(text, **{name: {"anything": "else"}}).param == name


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, one in REFUSED.items() for value in (None, *one.accepted)]
)
def test_the_value_that_asks_for_nothing_is_accepted(name: str, value: Any) -> None:
    read = chat if name in ChatBody.__struct_fields__ else text
    assert read(**{name: value}).model == "m"


def test_n_true_is_not_taken_for_one() -> None:
    assert refusal(chat, n=True).param == "n"


def test_an_unknown_parameter_is_refused_by_name() -> None:
    error = refusal(chat, temprature=1)
    assert (error.param, error.code) == ("temprature", "unknown_parameter")


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(BadRequest) as caught:
        read_chat(b'{"model": "m"}')
    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "\0"}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"odd": 1}}, "stream_options.odd"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"metadata": {"k": 1}}, "metadata[...]"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_refused_with_the_place_of_the_mistake(fields: dict[str, Any], param: str) -> None:
    assert refusal(chat, **fields).param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a\0"}, "prompt"),
    ],
)
def test_a_wrong_text_completion_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(text, **fields).param == param


def test_top_logprobs_without_logprobs_has_a_code() -> None:
    assert refusal(chat, top_logprobs=2).code == "invalid_value"


def test_echo_with_logprobs_has_a_code() -> None:
    assert refusal(text, echo=True, logprobs=1).code == "unsupported_parameter"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000])
def test_what_is_not_a_json_object_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_chat(data)


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(BadRequest):
        read_chat(b'{"model": "m", "messages": [{"role": "user", "content": "\\ud83d"}]}')


def test_sampling_parameters_reach_the_worker() -> None:
    asked = chat(
        temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1, seed=7, top_k=5, min_p=0.1
    )
    one = asked.sampling
    assert (one.temperature, one.top_p, one.presence_penalty, one.frequency_penalty) == (0.5, 0.9, 1, -1)
    assert (one.seed, one.top_k, one.min_p) == (7, 5, 0.1)


def test_logit_bias_keys_become_token_ids() -> None:
    assert chat(logit_bias={"17": -100}).sampling.logit_bias == {17: -100}


@pytest.mark.parametrize(("given", "stops"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ())])
def test_stop_is_a_string_or_a_list(given: Any, stops: tuple[str, ...]) -> None:
    assert chat(stop=given).stop == stops


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_either_name_limits_the_answer(name: str) -> None:
    assert chat(**{name: 5}).max_tokens == 5


def test_a_developer_message_is_a_system_message() -> None:
    assert chat(messages=[{"role": "developer", "content": "Be brief"}]).messages[0]["role"] == "system"


def test_text_parts_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0]["content"] == "a\nb"


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_a_prompt_may_be_token_ids(prompt: Any) -> None:
    assert text(prompt=prompt).token_ids == (1, 2, 3)


def test_the_recorded_parameters_are_the_body_without_its_prompt() -> None:
    assert chat(temperature=0.5, user="ann").parameters == {"model": "m", "temperature": 0.5, "user": "ann"}


@pytest.mark.parametrize(
    "name", sorted({*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__}), ids=str
)
def test_every_parameter_is_in_the_documentation(name: str) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "openai-api.md"
    assert f"`{name}`" in page.read_text(encoding="utf-8") or f"`{name}." in page.read_text(encoding="utf-8")
