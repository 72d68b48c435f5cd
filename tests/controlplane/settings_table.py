"""The table of docs/settings.md, made from the code: python -m tests.controlplane.settings_table"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from controlplane.common.environment import Settings
from controlplane.common.environment import variable as variable_of
from scheduler_worker.worker.settings import WorkerSettings

HEAD = ("| name | read by | default | meaning |", "|---|---|---|---|")
DATACLASSES = {"control plane": Settings, "worker": WorkerSettings}
BY_HOST = {"gateway_id": "`web-` and the host's name", "worker_id": "the host's name and the process's id"}


def rows() -> list[str]:
    """One row per environment variable, the required ones first, then by name."""
    found: dict[str, dict[str, Field[Any]]] = {}
    for role, settings in DATACLASSES.items():
        for one in fields(settings):
            found.setdefault(one.name, {})[role] = one
    ordered = sorted(found.items(), key=lambda pair: (not all(map(_required, pair[1].values())), pair[0]))
    return [*HEAD, *(_row(name, by_role) for name, by_role in ordered)]


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _row(name: str, by_role: dict[str, Field[Any]]) -> str:
    defaults = {role: _default(one) for role, one in by_role.items()}
    same = len(set(defaults.values())) == 1
    default = (
        next(iter(defaults.values()))
        if same
        else "; ".join(f"{role}: {text}" for role, text in defaults.items())
    )
    meaning = next(iter(by_role.values())).metadata["meaning"].replace("|", "\\|")
    return f"| `{variable_of(name)}` | {', '.join(by_role)} | {default} | {meaning} |"


def _default(one: Field[Any]) -> str:
    if _required(one):
        return "required"
    if one.name in BY_HOST:
        return BY_HOST[one.name]
    if one.default is True or one.default is False:
        return "on" if one.default else "off"
    text = (
        ",".join(one.default)
        if isinstance(one.default, tuple)
        else str("" if one.default is None else one.default)
    )
    return f"`{text}`" if text else "empty"


if __name__ == "__main__":
    print("\n".join(rows()))
