"""A gentle load of real chat prompts in three classes, with a burst every few minutes.

    python -m controlplane.embedded.load --demo DIR/demo.json --load DIR/load.json

It streams every answer as a client would. What the gateway refuses is let go: a client that is told to come
back later does not try again at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from .prompts import PROMPTS
from .sizing import Load

logger = logging.getLogger("tidegate.load")

RESTING_MIX = {"high": 0.35, "medium": 0.4, "low": 0.25}
BURST_MIX = {"high": 0.15, "medium": 0.35, "low": 0.5}
MAX_CONCURRENT = 96
FIRST_BURST_AFTER_S = 60.0
REQUEST_TIMEOUT_S = 180.0
RETRY_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests go and with which keys."""

    url: str
    model: str
    api_keys: Mapping[str, str]


def is_burst(load: Load, elapsed_s: float) -> bool:
    """Whether a burst is on; the first begins after a minute."""
    since_first = elapsed_s - FIRST_BURST_AFTER_S
    return since_first >= 0 and since_first % load.burst_every_s < load.burst_s


def pick_class(api_keys: Mapping[str, str], burst: bool, rng: random.Random) -> str:
    """A class by the mix of the moment; classes of other names share what is left evenly."""
    mix = BURST_MIX if burst else RESTING_MIX
    names = list(api_keys)
    return rng.choices(names, [mix.get(name, 1 / len(names)) for name in names])[0]


def request_body(model: str, rng: random.Random) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": rng.choice(PROMPTS)}],
        "max_tokens": rng.choice((16, 32, 48, 64, 96)),
        "temperature": 0.8,
        "stream": True,
    }


async def stream_once(client: httpx.AsyncClient, target: Target, class_id: str, rng: random.Random) -> None:
    """Send one request and read its answer to the end; a refusal or a lost connection is only logged."""
    headers = {"Authorization": f"Bearer {target.api_keys[class_id]}"}
    body = request_body(target.model, rng)
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                detail = (await response.aread()).decode(errors="replace")[:300]
                logger.info("%s: refused with %d: %s", class_id, response.status_code, detail)
                return
            async for _ in response.aiter_raw():
                pass
    except httpx.HTTPError as error:
        logger.warning("%s: %s: %s", class_id, type(error).__name__, error)
        await asyncio.sleep(RETRY_PAUSE_S)


async def run(target: Target, load: Load, rng: random.Random) -> None:
    """Open loop: arrivals do not wait for answers, up to a bound on what is open at once."""
    started = time.monotonic()
    limits = httpx.Limits(max_connections=MAX_CONCURRENT)
    async with (
        httpx.AsyncClient(base_url=target.url, timeout=REQUEST_TIMEOUT_S, limits=limits) as client,
        asyncio.TaskGroup() as tasks,
    ):
        num_open: set[asyncio.Task[None]] = set()
        while True:
            burst = is_burst(load, time.monotonic() - started)
            rate = load.burst_rate_per_s if burst else load.rate_per_s
            await asyncio.sleep(min(rng.expovariate(rate), load.burst_s))
            if len(num_open) < MAX_CONCURRENT:
                class_id = pick_class(target.api_keys, burst, rng)
                task = tasks.create_task(stream_once(client, target, class_id, rng))
                num_open.add(task)
                task.add_done_callback(num_open.discard)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m controlplane.embedded.load", description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="the demo.json of a running demo")
    parser.add_argument("--load", type=Path, required=True, help="JSON file with the rates")
    parser.add_argument("--seed", type=int, help="for the same requests every time")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(0)))
    demo = json.loads(arguments.demo.read_text())
    target = Target(demo["url"], demo["model"], demo["api_keys"])
    load = Load(**json.loads(arguments.load.read_text()))
    asyncio.run(run(target, load, random.Random(arguments.seed)))


if __name__ == "__main__":
    main()
