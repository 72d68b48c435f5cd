"""The web process with its event loop watched: how late it is, how long one task holds it, what the collector takes.

    BENCH_WATCH_JSON=OUT python -m uvicorn bench.gateway_watch:application

Written when the process ends. A task's turn is what runs between two of its waits: nothing else of the loop runs
meanwhile. Watching costs a few per cent: figures of CPU time are taken without.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, MutableMapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from controlplane import asgi
from scheduler_worker.sim.report import nearest_rank

LOOK_EVERY_S: Final = 0.005
LONG_TURN_S: Final = 0.003
Scope = MutableMapping[str, Any]


class Times:
    """Durations in seconds, and what is told of them."""

    def __init__(self) -> None:
        self.all = array("d")

    def add(self, seconds: float) -> None:
        self.all.append(seconds)

    def told(self) -> dict[str, float]:
        ordered = sorted(self.all)
        shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
        points = {f"{name}_ms": 1e3 * (nearest_rank(ordered, one) or 0.0) for name, one in shares.items()}
        num_long = sum(one > LONG_TURN_S for one in ordered)
        rounded = {name: round(one, 2) for name, one in points.items()}
        return {
            "num": len(ordered),
            "sum_ms": round(1e3 * sum(ordered), 1),
            **rounded,
            "num_over_3ms": num_long,
        }


class Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose turns are timed under its name."""

    def __init__(self, inner: Coroutine[Any, Any, Any], watch: Watch) -> None:
        self._inner, self._watch = inner, watch
        self._name = getattr(inner, "__qualname__", type(inner).__name__)

    def send(self, value: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return self._inner.send(value)
        finally:
            self._watch.turn(self._label(), time.perf_counter() - wall, time.thread_time() - cpu)

    def throw(self, *error: Any) -> Any:
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()

    def _label(self) -> str:
        """The loops of the gateway have names; their coroutines are all the same."""
        if self._name == "_supervised" and (frame := getattr(self._inner, "cr_frame", None)) is not None:
            self._name = str(frame.f_locals.get("name", self._name)).partition(" of ")[0]
        return self._name


class Watch:
    """Everything that was seen since `begin`."""

    def __init__(self) -> None:
        self.reset()
        self._collecting_since = 0.0

    def reset(self) -> None:
        """Forget the start."""
        self.lag = Times()
        self.wall: defaultdict[str, Times] = defaultdict(Times)
        self.cpu: defaultdict[str, Times] = defaultdict(Times)
        self.collections: defaultdict[str, Times] = defaultdict(Times)
        self.num_collected: Counter[str] = Counter()

    def turn(self, name: str, wall_s: float, cpu_s: float) -> None:
        self.wall[name].add(wall_s)
        self.cpu[name].add(cpu_s)

    def on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since = time.perf_counter()
        else:
            name = f"gen{info['generation']}"
            self.collections[name].add(time.perf_counter() - self._collecting_since)
            self.num_collected[name] += info["collected"]

    async def look(self) -> None:
        """How much later than it asked for a timer is called."""
        while True:
            due = time.perf_counter() + LOOK_EVERY_S
            await asyncio.sleep(LOOK_EVERY_S)
            self.lag.add(max(0.0, time.perf_counter() - due))

    def told(self) -> dict[str, Any]:
        by_sum = sorted(self.cpu, key=lambda name: -sum(self.cpu[name].all))
        return {
            "lag": self.lag.told(),
            "collections": {
                name: one.told() | {"collected": self.num_collected[name]}
                for name, one in sorted(self.collections.items())
            },
            "turns": {
                name: {"cpu": self.cpu[name].told(), "wall": self.wall[name].told()} for name in by_sum
            },
        }


watch = Watch()


@asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda _, job, **more: asyncio.Task(Timed(job, watch), loop=loop, **more))
    async with asgi.lifespan(app):
        gc.callbacks.append(watch.on_collection)
        looking = asyncio.ensure_future(watch.look())
        yield
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
        _write()


def _write() -> None:
    Path(os.environ["BENCH_WATCH_JSON"]).write_text(json.dumps(watch.told()))


asgi._lifespans.lifespan_context = _lifespan


async def application(
    scope: Scope, receive: Callable[[], Awaitable[Scope]], send: Callable[[Scope], Awaitable[None]]
) -> None:
    """`controlplane.asgi.application`; `/bench/reset` begins anew."""
    if scope["type"] == "http" and scope["path"] == "/bench/reset":
        watch.reset()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    await asgi.application(scope, receive, send)
