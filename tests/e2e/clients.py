"""Clients of the gateway that keep their own time: the unmodified `openai` package on a thread of its own."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from controlplane.embedded.prompts import PROMPTS

REQUEST_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Planned:
    """A request to come: when after the start, in which class, how many tokens exactly."""

    after_s: float
    class_id: str
    prompt: str
    num_tokens: int


@dataclass
class Stream:
    """What one client saw of its answer, by its own monotonic clock. `token_at` has an instant per token."""

    class_id: str
    sent_at: float
    first_at: float | None = None
    ended_at: float | None = None
    num_tokens: int = 0
    token_at: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        assert self.first_at is not None
        return self.first_at - self.sent_at

    @property
    def tpot_s(self) -> float:
        assert self.first_at is not None
        assert self.ended_at is not None
        return (self.ended_at - self.first_at) / (self.num_tokens - 1)

    @property
    def is_running(self) -> bool:
        return self.first_at is not None and self.ended_at is None

    @property
    def is_waiting(self) -> bool:
        return self.first_at is None and self.ended_at is None


def plan(nums: dict[str, int], num_tokens: int, mean_gap_s: float, seed: int) -> list[Planned]:
    """So many requests of each class in random order with exponential gaps; the same for the same seed."""
    rng = random.Random(seed)
    classes = [class_id for class_id, num in nums.items() for _ in range(num)]
    rng.shuffle(classes)
    planned, after_s = [], 0.0
    for class_id in classes:
        planned.append(Planned(after_s, class_id, rng.choice(PROMPTS), num_tokens))
        after_s += rng.expovariate(1 / mean_gap_s)
    return planned


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of them do not exceed."""
    return sorted(values)[math.ceil(round(share * len(values), 9)) - 1]


class Clients:
    """One client per class. The browser's thread only waits while they measure."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._model = info["model"]
        self._keys = info["api_keys"]
        self._url = f"{info['url']}/v1"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clients", daemon=True)
        self._thread.start()
        self._clients = self._call(self._open())

    def run(self, planned: Sequence[Planned]) -> list[Stream]:
        """Send all and wait until every answer has ended."""
        streams, done = self.begin(planned)
        done.result(REQUEST_TIMEOUT_S)
        return streams

    def begin(self, planned: Sequence[Planned]) -> tuple[list[Stream], Future[None]]:
        """Send all; the streams grow meanwhile. Cancelling the future closes every connection."""
        streams: list[Stream] = []
        return streams, asyncio.run_coroutine_threadsafe(self._send_all(planned, streams), self._loop)

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, awaitable: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(REQUEST_TIMEOUT_S)

    async def _open(self) -> dict[str, AsyncOpenAI]:
        """Connected and warm: what a package loads at its first call is not the system's time."""
        clients = {
            class_id: AsyncOpenAI(base_url=self._url, api_key=key, max_retries=0, timeout=REQUEST_TIMEOUT_S)
            for class_id, key in self._keys.items()
        }
        for client in clients.values():
            await client.models.list()
        return clients

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _send_all(self, planned: Sequence[Planned], streams: list[Stream]) -> None:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for one in planned:
                await asyncio.sleep(max(0.0, started + one.after_s - time.perf_counter()))
                tasks.create_task(self._follow(one, streams))

    async def _follow(self, one: Planned, streams: list[Stream]) -> None:
        stream = Stream(one.class_id, time.perf_counter())
        streams.append(stream)
        chunks = await self._clients[one.class_id].chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": one.prompt}],
            max_tokens=one.num_tokens,
            temperature=0.8,
            logprobs=True,  # names every token, also where several come in one chunk
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in chunks:
            _note(stream, chunk)
        stream.ended_at = time.perf_counter()


def _note(stream: Stream, chunk: Any) -> None:
    now = time.perf_counter()
    stream.first_at = stream.first_at or now
    if chunk.usage is not None:
        stream.num_tokens = chunk.usage.completion_tokens
    for choice in chunk.choices:
        tokens = choice.logprobs.content if choice.logprobs is not None else None
        stream.token_at.extend(now for _ in tokens or ())


def wait_until(condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.1) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {timeout_s:.0f} s")
        time.sleep(pause_s)
