"""The gateway's loops end with it."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from controlplane.gateway.tasks import Tasks


async def _deaf_to_one_cancellation(heard: list[str]) -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if heard:
                raise
            heard.append("taken for a timeout")


def test_a_loop_that_misses_a_cancellation_ends_all_the_same() -> None:
    heard: list[str] = []

    async def start_and_stop() -> None:
        tasks = Tasks()
        tasks.keep("deaf", lambda: _deaf_to_one_cancellation(heard))
        await asyncio.sleep(0)
        await asyncio.wait_for(tasks.stop(), timeout=10)

    asyncio.run(start_and_stop())
    assert heard == ["taken for a timeout"]


def test_a_loop_that_fails_is_started_again() -> None:
    starts: list[int] = []

    async def fail_once() -> None:
        starts.append(1)
        if len(starts) == 1:
            raise ValueError("one bad message")
        await asyncio.sleep(60)

    async def run() -> None:
        tasks = Tasks()
        tasks.keep("fragile", fail_once)
        while len(starts) < 2:
            await asyncio.sleep(0.01)
        await tasks.stop()

    asyncio.run(asyncio.wait_for(run(), timeout=10))
    assert len(starts) == 2


def test_a_loop_that_was_told_to_end_is_not_started_again() -> None:
    """As an output stream's reader that misses its cancellation: started over and over, it would let nothing
    else run. A process of its own can be stopped from outside then."""
    code = """
import asyncio
from controlplane.gateway.tasks import Tasks

async def ended():
    pass

async def run():
    await asyncio.wait_for(Tasks().keep("reader", ended), timeout=5)

asyncio.run(run())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
