"""What `bench.gateway` asks of a gateway in an open loop, and what the rest of a fleet would say beside it."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Final, cast
from uuid import UUID

import redis
import redis.asyncio

from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import (
    ClassLoad,
    Device,
    EventRecord,
    GatewayTelemetry,
    LatencySample,
    RunningRow,
    WorkerTelemetry,
)
from scheduler_worker.protocol.telemetry import stream_fields
from tests.gateway.scripted_worker import ScriptedWorker

POOL: Final = "default"
END: Final = b"data: [DONE]"
FLEET_EVERY_S: Final = 0.25
FLEET_ROWS: Final = 256


@dataclass
class Seen:
    """What the clients of an open loop saw; times in seconds from the instant at which a request was due."""

    num_refused: int = 0
    num_events: int = 0
    first_s: list[float] = field(default_factory=list)
    end_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    most_open: int = 0

    @property
    def num_requests(self) -> int:
        return len(self.end_s)


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one streamed answer on it."""

    def __init__(self, seen: Seen, idle: deque[Connection]) -> None:
        self._seen, self._idle = seen, idle
        self._transport: asyncio.Transport | None = None
        self._due = 0.0
        self._has_head = self._has_first = False
        self.done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> asyncio.Future[None]:
        """Ask; done with the answer's end."""
        assert self._transport is not None
        self._due, self._has_head, self._has_first = due, False, False
        self._seen.late_s.append(time.perf_counter() - due)
        self.done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self._has_head:
            self._has_head = True
            if not data.startswith(b"HTTP/1.1 200"):
                self._seen.num_refused += 1
                self._end(reusable=False)
                return
        if not self._has_first and b"data: " in data:
            self._has_first = True
            self._seen.first_s.append(now - self._due)
        self._seen.num_events += data.count(b"data: ")
        if END in data:
            self._seen.end_s.append(now - self._due)
            self._end(reusable=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(reusable=False)

    def _end(self, reusable: bool) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(None)
            if reusable:
                self._idle.append(self)
            elif self._transport is not None:
                self._transport.close()


class OpenLoop:
    """Poisson arrivals, whatever the answers do."""

    def __init__(self, port: int, request: bytes, seed: int = 1) -> None:
        self._port, self._request = port, request
        self._draw = random.Random(seed)
        self._idle: deque[Connection] = deque()
        self._num_open = 0

    async def run(self, rate: float, seconds: float, seen: Seen) -> None:
        """All that is due in so many seconds, to its end."""
        asks: list[asyncio.Task[None]] = []
        began = due = time.perf_counter()
        while due < began + seconds:
            due += self._draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asks.append(asyncio.ensure_future(self._ask(due, seen)))
        await asyncio.gather(*asks)

    async def _ask(self, due: float, seen: Seen) -> None:
        self._num_open += 1
        seen.most_open = max(seen.most_open, self._num_open)
        if self._idle:
            connection = self._idle.popleft()
            connection._seen = seen
        else:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(seen, self._idle), "127.0.0.1", self._port
            )
        await connection.send(self._request, due)
        self._num_open -= 1


@contextmanager
def worker_process(url: str, num_tokens: int, step_s: float, tokens_per_step: int) -> Iterator[None]:
    """An echoing worker in a process of its own: its Python is not the clients'."""
    spawn = multiprocessing.get_context("spawn")
    ready, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_work, args=(url, num_tokens, step_s, tokens_per_step, ready, stop))
    process.start()
    ready.wait(30)
    try:
        yield
    finally:
        stop.set()
        process.join(30)


def _work(url: str, num_tokens: int, step_s: float, tokens_per_step: int, ready: Event, stop: Event) -> None:
    worker = ScriptedWorker(
        url, POOL, lambda _: [5] * num_tokens, eos_id=2, step_s=step_s, max_model_len=4096
    )
    worker.tokens_per_step = tokens_per_step
    worker.start()
    ready.set()
    stop.wait()
    worker.stop()


class Fleet:
    """Writes to the telemetry stream what other gateways and a busy worker would."""

    def __init__(self, url: str, num_gateways: int, accepted_per_s: float, refused_per_s: float) -> None:
        self._client = redis.asyncio.Redis.from_url(url)
        self._gateways = [f"other-{number}" for number in range(num_gateways)]
        self._num_accepted = round(accepted_per_s * FLEET_EVERY_S)
        self._num_refused = round(refused_per_s * FLEET_EVERY_S)
        self._draw = random.Random(2)
        self._sequence = 0

    async def run(self, class_ids: list[str]) -> None:
        """Speak until cancelled, one after the other."""
        if not self._gateways:
            return
        while True:
            self._sequence += 1
            for name in self._gateways:
                await self._say(self._gateway(name, class_ids))
                await asyncio.sleep(FLEET_EVERY_S / (len(self._gateways) + 1))
            await self._say(self._worker(class_ids))
            await asyncio.sleep(FLEET_EVERY_S / (len(self._gateways) + 1))

    async def _say(self, message: GatewayTelemetry | WorkerTelemetry) -> None:
        await self._client.xadd(
            keys.TELEMETRY.of(POOL),
            stream_fields(message),
            maxlen=keys.TELEMETRY_MAX_ENTRIES,
            approximate=True,
        )

    def _id(self) -> str:
        return str(UUID(int=self._draw.getrandbits(128)))

    def _gateway(self, name: str, class_ids: list[str]) -> GatewayTelemetry:
        at = time.time()
        chosen = self._draw.choices(class_ids, k=self._num_accepted)
        return GatewayTelemetry(
            gateway=name,
            pool=POOL,
            at=at,
            sequence=self._sequence,
            interval_s=FLEET_EVERY_S,
            open_streams=40,
            arrivals={one: chosen.count(one) for one in class_ids},
            refused={class_ids[-1]: self._num_refused},
            output_tokens={one: 100 * chosen.count(one) for one in class_ids},
            first_tokens=tuple(self._sample(at, one) for one in chosen),
            finished=tuple(self._sample(at, one, 0.005) for one in chosen),
            events=tuple(self._refusal(at, class_ids[-1]) for _ in range(self._num_refused)),
        )

    def _sample(self, at: float, class_id: str, tpot_s: float | None = None) -> LatencySample:
        return LatencySample(
            at=at,
            class_id=class_id,
            tenant=f"tenant-{class_id}",
            request_id=self._id(),
            ttft_s=self._draw.uniform(0.02, 0.1),
            tpot_s=tpot_s,
            e2e_s=None if tpot_s is None else 0.6,
            num_prompt_tokens=175,
            num_output_tokens=0 if tpot_s is None else 107,
            met=None if tpot_s is None else True,
            outcome="" if tpot_s is None else "succeeded",
        )

    @staticmethod
    def _refusal(at: float, class_id: str) -> EventRecord:
        numbers = {
            "wait_s": 0.9,
            "predicted_s": 1.0,
            "bound_s": 0.5,
            "retry_after_s": 3.0,
            "num_prompt_tokens": 175,
        }
        return EventRecord(
            at=at,
            kind="rejected",
            reason="predicted_ttft",
            class_id=class_id,
            tenant="tenant",
            numbers=dict(numbers),
        )

    def _worker(self, class_ids: list[str]) -> WorkerTelemetry:
        at = time.time()
        ended = [self._id() for _ in range(len(self._gateways) * self._num_accepted)]
        events = [
            EventRecord(
                at=at, kind=kind, reason=reason, request_id=one, class_id=class_ids[0], tenant="tenant"
            )
            for one in ended
            for kind, reason in (("queued", "arrived"), ("scheduled", "weight_turn"), ("finished", "length"))
        ]
        return WorkerTelemetry(
            worker="other-worker",
            pool=POOL,
            at=at,
            sequence=self._sequence,
            policy_version=1,
            device=Device(kind="cuda", name="imagined"),
            batch_limit=FLEET_ROWS,
            num_slots=FLEET_ROWS,
            num_running=FLEET_ROWS,
            num_blocks=20_000,
            num_used_blocks=5_000,
            num_steps=50,
            interval_s=FLEET_EVERY_S,
            num_prompt_tokens=19_000,
            num_generated_tokens={class_ids[0]: 12_000},
            rows=tuple(self._row(at, one) for one in self._draw.choices(class_ids, k=FLEET_ROWS)),
            classes=tuple(
                ClassLoad(class_id=one, num_waiting=8, num_running=85, num_parked=0) for one in class_ids
            ),
            events=tuple(events[-500:]),
        )

    def _row(self, at: float, class_id: str) -> RunningRow:
        return RunningRow(
            request_id=self._id(),
            class_id=class_id,
            state="decode",
            arrived_at=at - 0.5,
            num_prompt_tokens=175,
            num_generated_tokens=50,
            num_blocks=15,
        )
