"""The arguments of bin/test. Standard library only: read before anything is installed."""

from __future__ import annotations

import argparse


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="bin/test", description="Set up this checkout, then run every check and every test."
    )
    options.add_argument("--torch-index", metavar="URL", help="take torch from this package index")
    options.add_argument(
        "--only",
        metavar="STEP",
        action="append",
        choices=["lint", "types", "imports", "containers", "frontend", "python", "browser"],
        help="run only this step; may be given again (%(choices)s)",
    )
    return options
