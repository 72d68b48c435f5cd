"""A worker without a model: it speaks the real protocol through the real scripts and says what it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import redis

from controlplane.common.redis import run_sync
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import (
    Frame,
    FrameRow,
    Header,
    Payload,
    Timings,
    TokenLogprobs,
    WorkerInfo,
    encode,
)

LEASE_S = 1.0
Answer = Callable[[Payload], Sequence[int]]


@dataclass
class Running:
    """A claimed request: what it will say and how far it has come."""

    header: Header
    payload: Payload
    tokens: Sequence[int]
    stops: bool
    position: int = 0


@dataclass
class ScriptedWorker:
    """Claims all that waits, emits `tokens_per_step` tokens of `answer(payload)` each step, obeys cancels.

    `gate` closed: it holds claims and renews its lease but makes no token.
    """

    url: str
    pool: str
    answer: Answer
    eos_id: int
    name: str = "worker-1"
    step_s: float = 0.001
    tokens_per_step: int = 1
    max_model_len: int = 256
    error: str = ""
    claims: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    running: dict[str, Running] = field(default_factory=dict)
    seen: list[Payload] = field(default_factory=list)
    headers: list[Header] = field(default_factory=list)
    finishes: list[FrameRow] = field(default_factory=list)
    cancelled: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()
        self._client = redis.Redis.from_url(self.url)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._last_change = "0-0"
        self._step = 0

    def announce(self, draining: bool = False) -> None:
        """Say what it is, under its own key."""
        info = WorkerInfo(
            worker=self.name,
            pool=self.pool,
            model="tiny",
            started_at=time.time(),
            num_slots=64,
            num_blocks=1000,
            block_size=16,
            max_model_len=self.max_model_len,
            draining=draining,
        )
        self._client.set(keys.WORKER_INFO.of(self.pool, self.name), encode(info), ex=60)

    def start(self) -> ScriptedWorker:
        self.announce()
        run_sync(self._client, scripts.renew(self.pool, self.name, LEASE_S))
        self._thread.start()
        return self

    def stop(self, leave: bool = True) -> None:
        """Without `leave` the lease runs out by itself, as after a crash."""
        self._stopping.set()
        self._thread.join(timeout=10)
        if leave:
            run_sync(self._client, scripts.retire(self.pool, self.name))
        self._client.close()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._obey_cancels()
            if self.claims:
                self._claim()
            if self.gate.is_set() and self.running:
                self._make_step()
            else:
                run_sync(self._client, scripts.renew(self.pool, self.name, LEASE_S))
            self._stopping.wait(self.step_s)

    def _claim(self) -> None:
        waiting = [one.request_id for one in run_sync(self._client, scripts.mirror(self.pool)).headers]
        if not waiting:
            return
        for won in run_sync(self._client, scripts.claim(self.pool, self.name, waiting, LEASE_S)):
            assert won.payload is not None
            self._begin(won.header, won.payload, len(won.token_ids) // 4)

    def _begin(self, header: Header, payload: Payload, position: int) -> None:
        tokens = list(self.answer(payload))
        stops = len(tokens) < payload.sampling.max_tokens
        tokens = [*tokens, self.eos_id] if stops else tokens[: payload.sampling.max_tokens]
        self.seen.append(payload)
        self.headers.append(header)
        self.running[header.request_id] = Running(header, payload, tokens, stops, position)

    def _make_step(self) -> None:
        self._step += 1
        frames: dict[str, list[FrameRow]] = {}
        for one in self.running.values():
            frames.setdefault(one.header.gateway, []).append(self._row(one))
        self.publish(frames)

    def publish(self, rows_by_gateway: dict[str, list[FrameRow]]) -> None:
        """Publish rows; those that are not ours any more are given up."""
        frames = {
            gateway: Frame(worker=self.name, step=self._step, published_at=time.time(), rows=tuple(rows))
            for gateway, rows in rows_by_gateway.items()
        }
        published = run_sync(self._client, scripts.publish(self.pool, self.name, LEASE_S, frames))
        for request_id in published.lost:
            self.running.pop(request_id, None)
        if published.done:
            for rows in rows_by_gateway.values():
                self._advance(rows)

    def _advance(self, rows: list[FrameRow]) -> None:
        for row in rows:
            if row.finish:
                self.finishes.append(row)
                self.running.pop(row.request_id, None)
            elif row.request_id in self.running:
                self.running[row.request_id].position += len(row.token_ids)

    def _row(self, one: Running) -> FrameRow:
        tokens = tuple(one.tokens[one.position : one.position + self.tokens_per_step])
        is_last = one.position + len(tokens) >= len(one.tokens)
        finish = ("stop" if one.stops else "length") if is_last else ""
        return FrameRow(
            request_id=one.header.request_id,
            attempt=one.header.attempt,
            offset=one.position,
            token_ids=() if self.error else tokens,
            finish="failed" if self.error else finish,
            error=self.error,
            logprobs=self._logprobs(one, tokens),
            timings=Timings(queue_s=0.001, prefill_s=0.002, num_cached_tokens=4) if finish else None,
        )

    def _logprobs(self, one: Running, tokens: tuple[int, ...]) -> tuple[TokenLogprobs, ...]:
        num = one.payload.sampling.logprobs
        if num is None:
            return ()
        return tuple(
            TokenLogprobs(token, -0.25, tuple((token + i, -0.25 - i) for i in range(num))) for token in tokens
        )

    def _obey_cancels(self) -> None:
        reply = self._client.xread({keys.CHANGES.of(self.pool): self._last_change}, count=1000)
        entries = reply[0][1] if isinstance(reply, list) and reply else []
        if isinstance(reply, dict):
            entries = next(iter(reply.values()), [[]])[0]
        for entry_id, fields in entries:
            self._last_change = entry_id.decode()
            change = scripts.read_change(fields)
            if change.op is scripts.ChangeOp.CANCEL and change.id in self.running:
                self._cancel(self.running[change.id])

    def _cancel(self, one: Running) -> None:
        self.cancelled.append((one.header.request_id, time.perf_counter()))
        row = FrameRow(
            request_id=one.header.request_id,
            attempt=one.header.attempt,
            offset=one.position,
            finish="cancelled",
        )
        self.publish({one.header.gateway: [row]})
