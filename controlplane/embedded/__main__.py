"""Runs Postgres and Valkey in the foreground: python -m controlplane.embedded --data-dir DIR"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from .errors import EmbeddedServiceError
from .services import EmbeddedServices

CHECK_INTERVAL_S = 0.5


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m controlplane.embedded", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="where both keep their data")
    parser.add_argument(
        "--json", action="store_true", help="print one line of JSON instead of shell assignments"
    )
    return parser.parse_args()


def _stop(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _print_urls(services: EmbeddedServices, as_json: bool) -> None:
    urls = {"TIDEGATE_DATABASE_URL": services.database_url, "TIDEGATE_REDIS_URL": services.redis_url}
    lines = [json.dumps(urls)] if as_json else [f"export {name}={value}" for name, value in urls.items()]
    print("\n".join(lines), flush=True)


def main() -> None:
    arguments = _parse_arguments()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _stop)  # SIGINT is ignored in a process that a script started with `&`
    try:
        with EmbeddedServices(arguments.data_dir) as services:
            _print_urls(services, arguments.json)
            while True:
                services.check()
                time.sleep(CHECK_INTERVAL_S)
    except EmbeddedServiceError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
