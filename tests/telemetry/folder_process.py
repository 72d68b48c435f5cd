"""A process that folds telemetry as a web process does.

It says on its output whether it leads or follows, and how many ended requests it has seen.


python -m tests.telemetry.folder_process POOL
"""

from __future__ import annotations

import asyncio
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

import django

django.setup()

from controlplane.telemetry import folder  # noqa: E402 (Django must be set up first)


async def main(pool: str) -> None:
    await folder.start(pool)
    said = ""
    while True:
        await asyncio.sleep(0.05)
        running = folder.current()
        if running is None or not running.restored:
            continue
        num_seen = int(sum(running.fold.totals.finished.values()))
        says = f"{'leads' if running.leads else 'follows'} {num_seen}"
        if says != said:
            said = says
            print(said, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
