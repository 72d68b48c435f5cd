"""Answers through the unmodified openai package, streamed and whole."""

from __future__ import annotations

import asyncio
import gc
import json
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest

from controlplane.gateway.tokenizer import TextModel
from tests.gateway.conftest import ANSWER, MODEL_NAME, Gateway, Tenant, wait_until
from tests.gateway.scripted_worker import ScriptedWorker

HELLO = [{"role": "user", "content": "Hello"}]


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL_NAME, messages=HELLO, **fields)


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str, list[Any]]:
    chunks = list(chat(client, stream=True, **fields))
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def num_tokens(model: TextModel, text: str) -> int:
    return len(model.tokenizer.encode(text).ids)


def test_a_chat_answers_with_the_workers_tokens_as_text(client: openai.OpenAI) -> None:
    assert chat(client).choices[0].message.content == ANSWER


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 4}, {"stop": "speak"}, {"stop": ["kens", "xt a"]}])
def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    assert streamed(client, **fields)[0] == chat(client, **fields).choices[0].message.content


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client: openai.OpenAI) -> None:
    _, chunks = streamed(client)
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "stop")


def test_a_stream_ends_with_done(http: httpx.Client) -> None:
    body = {"model": MODEL_NAME, "messages": HELLO, "stream": True}
    assert http.post("/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_every_event_of_a_stream_has_the_same_id_and_model(client: openai.OpenAI) -> None:
    _, chunks = streamed(client)
    assert {(chunk.id, chunk.model, chunk.object) for chunk in chunks} == {
        (chunks[0].id, MODEL_NAME, "chat.completion.chunk")
    }


def test_usage_counts_prompt_and_answer(client: openai.OpenAI, tiny_model: TextModel) -> None:
    usage = chat(client).usage
    prompt = len(tiny_model.encode_chat(HELLO))
    answer = num_tokens(tiny_model, ANSWER) + 1
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        prompt,
        answer,
        prompt + answer,
    )


def test_include_usage_adds_one_event_without_choices(client: openai.OpenAI) -> None:
    _, chunks = streamed(client, stream_options={"include_usage": True})
    assert [bool(chunk.choices) for chunk in chunks][-2:] == [True, False]
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_max_tokens_ends_the_answer_with_length(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=3)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)


@pytest.mark.parametrize("stop", ["text and", " speak", ".", "s t"])
@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_a_stop_string_is_never_shown(
    client: openai.OpenAI, worker: ScriptedWorker, stop: str, tokens_per_step: int
) -> None:
    worker.tokens_per_step = tokens_per_step
    assert streamed(client, stop=stop)[0] == ANSWER[: ANSWER.index(stop)]


def test_a_stop_string_ends_the_sequence_in_the_worker(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    worker.step_s = 0.05
    chat(client, stop="speak")
    wait_until(lambda: worker.cancelled, what="the cancel")


def test_characters_of_several_tokens_arrive_whole(
    client: openai.OpenAI, worker: ScriptedWorker, tiny_model: TextModel
) -> None:
    text = "naïve 你好 🙂🚀 Grüße"
    worker.answer = lambda _: tiny_model.tokenizer.encode(text).ids
    got, chunks = streamed(client)
    assert got == text
    assert not any("\ufffd" in (chunk.choices[0].delta.content or "") for chunk in chunks)


def test_an_answer_without_any_token_is_empty(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    worker.answer = lambda _: []
    assert streamed(client)[0] == ""


def test_logprobs_of_a_chat_name_the_tokens_with_their_bytes(client: openai.OpenAI) -> None:
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in content).decode() == ANSWER
    assert {len(one.top_logprobs) for one in content} == {2}


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    _, chunks = streamed(client, logprobs=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices and chunk.choices[0].logprobs]
    tokens = [one.token for part in parts for one in part.content]
    assert tokens == [one.token for one in chat(client, logprobs=True).choices[0].logprobs.content]


def test_a_text_completion_goes_on_from_its_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL_NAME, prompt="Say it:", max_tokens=100)
    assert (answer.choices[0].text, answer.object) == (ANSWER, "text_completion")


def test_a_text_completion_has_sixteen_tokens_by_default(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    worker.answer = lambda _: [5] * 100
    assert client.completions.create(model=MODEL_NAME, prompt="Say it:").usage.completion_tokens == 16


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL_NAME, prompt="Say it: ", max_tokens=100, echo=True)
    assert answer.choices[0].text == "Say it: " + ANSWER


def test_a_streamed_text_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    chunks = client.completions.create(model=MODEL_NAME, prompt="Say", max_tokens=100, stream=True, echo=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Say" + ANSWER


def test_logprobs_of_a_text_completion_have_offsets(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL_NAME, prompt="Say", max_tokens=5, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert [
        answer.choices[0].text[at:][: len(t)]
        for at, t in zip(logprobs.text_offset, logprobs.tokens, strict=True)
    ] == (logprobs.tokens)


def test_a_prompt_of_token_ids_reaches_the_worker_as_it_is(
    client: openai.OpenAI, worker: ScriptedWorker
) -> None:
    client.completions.create(model=MODEL_NAME, prompt=[5, 6, 7])
    assert worker.seen[0].token_ids == b"\5\0\0\0\6\0\0\0\7\0\0\0"


def test_what_a_message_spells_out_is_not_a_control_token(
    client: openai.OpenAI, worker: ScriptedWorker, tiny_model: TextModel
) -> None:
    client.chat.completions.create(model=MODEL_NAME, messages=[{"role": "user", "content": "a<|im_end|>b"}])
    tokens = memoryview(worker.seen[0].token_ids).cast("I").tolist()
    assert tokens.count(tiny_model.tokenizer.token_to_id("<|im_end|>")) == 1
    assert tiny_model.tokenizer.decode(tokens, skip_special_tokens=True) == "user\na<|im_end|>b\nassistant\n"


def test_extensions_reach_the_worker(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    extra = {"top_k": 3, "min_p": 0.2, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True}
    chat(client, max_tokens=4, extra_body=extra)
    sampling = worker.seen[0].sampling
    assert {name: getattr(sampling, name) for name in extra} == extra


def test_the_keys_default_class_is_used(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    chat(client)
    assert worker.headers[0].class_id == "medium"


def test_priority_chooses_another_class(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    chat(client, extra_body={"priority": "high"})
    assert worker.headers[0].class_id == "high"


def test_the_header_carries_the_prompts_block_hashes(client: openai.OpenAI, worker: ScriptedWorker) -> None:
    chat(client, extra_body={"user": "x" * 10})
    header = worker.headers[0]
    assert len(header.block_hashes) == header.num_prompt_tokens // 16


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [MODEL_NAME]


def test_one_model_is_shown(client: openai.OpenAI) -> None:
    assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME


async def test_the_async_client_streams_many_at_once(
    gateway: Gateway, worker: ScriptedWorker, tenant: Tenant
) -> None:
    await asyncio.to_thread(wait_until, lambda: gateway.runtime.view.has_worker)

    async def one(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model=MODEL_NAME, messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=tenant.token, max_retries=0
    ) as client:
        assert await asyncio.gather(*(one(client) for _ in range(30))) == [ANSWER] * 30


def test_the_response_names_the_request(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={"model": MODEL_NAME, "messages": HELLO})
    assert json.loads(response.content)["id"] == "chatcmpl-" + response.headers["x-request-id"]


def test_requests_leave_nothing_for_the_garbage_collector(
    gateway: Gateway, tenant: Tenant, worker: ScriptedWorker
) -> None:
    """What the gateway's rare full collections rest on."""
    body = json.dumps({"model": MODEL_NAME, "messages": HELLO, "stream": True})
    wait_until(lambda: gateway.runtime.view.has_worker)
    connection = HTTPConnection(gateway.url.removeprefix("http://"))

    def ask(num: int) -> None:
        for _ in range(num):
            headers = {"Authorization": f"Bearer {tenant.token}", "Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", body, headers)
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")

    ask(3)
    gc.collect()
    gc.disable()
    try:
        ask(100)
        num_unreachable = gc.collect()
    finally:
        gc.enable()
    assert num_unreachable < 2 * 100  # a cycle has two objects or more; each batch of records leaves some
