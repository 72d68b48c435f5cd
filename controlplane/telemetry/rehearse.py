"""For developers: an imagined fleet's telemetry, without workers, gateways or a model.

    python -m controlplane.telemetry.rehearse --state fault

publishes into the Valkey of TIDEGATE_REDIS_URL as real gateways and workers would, until stopped; a web
process beside it shows the fleet. With `--serve PORT` nothing else is needed: it starts a Valkey and a
Postgres of its own and serves `/ws/live/` on 127.0.0.1 *without sign-in*. Never use it on a pool that serves
requests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from redis.asyncio import Redis

from controlplane.telemetry.fake_fleet import INTERVAL_S, STATES, FakeFleet, State
from scheduler_worker.protocol import keys
from scheduler_worker.protocol.messages import PolicyAnnouncement, encode
from scheduler_worker.protocol.telemetry import stream_fields

TAIL_S: Final = 75
"""How much of the past goes onto the stream; `--serve` stores more of it as roll-ups."""
PAST_S: Final = 900
FAULT_AGE_S: Final = 260
PAST_STEP_S: Final = 0.5


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m controlplane.telemetry.rehearse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--state", choices=STATES, default="calm", help="what the fleet goes through")
    parser.add_argument("--pool", default=os.environ.get("TIDEGATE_POOL", "default"))
    parser.add_argument("--redis-url", default=os.environ.get("TIDEGATE_REDIS_URL", ""))
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve the websocket too, without sign-in")
    options = parser.parse_args(arguments)
    if not options.redis_url and options.serve is None:
        parser.error("set TIDEGATE_REDIS_URL or --redis-url, or use --serve PORT")
    return options


class Rehearsal:
    """Publishes a fake fleet's telemetry."""

    def __init__(self, redis: Redis, pool: str, state: State) -> None:
        self._redis, self._pool, self._state = redis, pool, state

    async def publish(self) -> None:
        """The recent past at once, then the present as it comes; until cancelled."""
        await self._redis.delete(keys.TELEMETRY.of(self._pool))
        now = time.time()
        fleet = FakeFleet(self._state, started_at=now - TAIL_S - 30, fault_at=now - FAULT_AGE_S)
        fleet.silent_at = max(fleet.silent_at, now + 8) if self._state == "silent" else fleet.silent_at
        await self._announce_policy(fleet)
        for _ in fleet.advance(now - TAIL_S):
            pass  # what runs when the tail begins began before it
        at = now - TAIL_S
        while at < now:
            at += INTERVAL_S
            await self._publish(fleet, at)
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._publish(fleet, time.time())

    async def _announce_policy(self, fleet: FakeFleet) -> None:
        document = fleet.policy.model_dump_json()
        announcement = PolicyAnnouncement(version=fleet.version, document=document, published_at=time.time())
        await self._redis.set(keys.POLICY.of(self._pool), encode(announcement))

    async def _publish(self, fleet: FakeFleet, at: float) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for message in fleet.advance(at):
                pipe.xadd(
                    keys.TELEMETRY.of(self._pool),
                    cast(dict[Any, Any], stream_fields(message)),
                    maxlen=keys.TELEMETRY_MAX_ENTRIES,
                    approximate=True,
                )
            leases = fleet.leases(at)
            pipe.zadd(keys.WORKER_LEASES.of(self._pool), leases)
            for name, info in fleet.infos().items():
                if leases[name] > at:
                    pipe.set(keys.WORKER_INFO.of(self._pool, name), encode(info), ex=10)
            await pipe.execute()


def serve(options: argparse.Namespace) -> None:
    """The websocket without sign-in, on services of its own."""
    from controlplane.embedded import EmbeddedServices

    with tempfile.TemporaryDirectory(prefix="tidegate-rehearsal-") as folder:
        Path(folder).chmod(0o755)
        with EmbeddedServices(Path(folder) / "data", durable=False) as services:
            os.environ["TIDEGATE_DATABASE_URL"] = services.database_url
            os.environ["TIDEGATE_REDIS_URL"] = options.redis_url = services.redis_url
            os.environ.setdefault("TIDEGATE_SECRET_KEY", "rehearsal-only-" + "x" * 40)
            os.environ["TIDEGATE_POOL"] = options.pool
            _serve(options)


def _serve(options: argparse.Namespace) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")
    import django
    import uvicorn
    from django.core.management import call_command

    django.setup()
    call_command("migrate", "telemetry", verbosity=0, skip_checks=True)
    _store_past(options.pool, options.state)
    uvicorn.run(_application(options), host="127.0.0.1", port=options.serve, log_level="warning")


def _store_past(pool: str, state: State) -> None:
    """A quarter of an hour before the stream's tail, as roll-ups."""
    from controlplane.telemetry import services
    from controlplane.telemetry.fold import TelemetryFold
    from scheduler_worker.protocol.reasons import render

    now = time.time()
    at = now - PAST_S
    fleet = FakeFleet(state, started_at=at, fault_at=now - FAULT_AGE_S)
    fleet.silent_at = now if state == "silent" else fleet.silent_at
    fold = TelemetryFold(render)
    fold.set_policy(fleet.version, fleet.policy)
    while at < now - TAIL_S + 20:
        at += PAST_STEP_S
        for message in fleet.advance(at):
            fold.take(message)
    services.store(pool, fold.close_rollups(now))


def _application(options: argparse.Namespace) -> Any:
    from types import SimpleNamespace

    from controlplane.telemetry import folder
    from controlplane.telemetry.consumers import LiveConsumer

    anyone = SimpleNamespace(
        is_authenticated=True, is_active=True, is_staff=True,
        get_full_name=lambda: "Ines Aalto", get_username=lambda: "ines",
    )  # fmt: skip
    live = LiveConsumer.as_asgi()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await live({**scope, "user": anyone}, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"only /ws/live/ is served here\n"})
        else:
            await _lifespan(receive, send)

    async def _lifespan(receive: Any, send: Any) -> None:
        await receive()
        publishing = asyncio.create_task(_publish(options))
        await asyncio.sleep(1.5)
        await folder.start(options.pool, options.redis_url)
        await send({"type": "lifespan.startup.complete"})
        sys.stderr.write(f"ws://127.0.0.1:{options.serve}/ws/live/ shows the state {options.state}\n")
        await receive()
        await folder.stop()
        publishing.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    return application


async def _publish(options: argparse.Namespace) -> None:
    async with Redis.from_url(options.redis_url) as redis:
        await Rehearsal(redis, options.pool, options.state).publish()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    if options.serve is not None:
        serve(options)
        return
    try:
        asyncio.run(_publish(options))
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")


if __name__ == "__main__":
    main()
