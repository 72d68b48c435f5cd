"""Answers through the unmodified openai package, streamed and whole."""

from __future__ import annotations

import openai
import pytest

from controlplane.gateway.tokenizer import TextModel
from tests.gateway.conftest import ANSWER, MODEL_NAME, Gateway, Tenant
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]


def chat(client: openai.OpenAI, **fields: object) -> object:
    return client.chat.completions.create(model=MODEL_NAME, messages=HELLO, **fields)


def streamed(client: openai.OpenAI, **fields: object) -> tuple[str, list[object]]:
    chunks = list(client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True, **fields))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_a_chat_answers_with_the_workers_tokens_as_text(client: openai.OpenAI) -> None:
    assert chat(client).choices[0].message.content == ANSWER


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    assert streamed(client)[0] == chat(client).choices[0].message.content
