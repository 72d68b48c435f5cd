"""The virtual environment: made without ensurepip, filled by one pip command with pinned versions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from _index import fetch_pip
from _process import StepError, run_logged, run_quietly, say

STAMP = ".tidegate-packages"
LARGE_BYTES = 20_000_000
REPORT_INTERVAL_S = 5.0
TORCH = "torch"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def ensure_installed(
    venv: Path, constraints: Path, requirements: list[str], digest: str, torch_index: str | None
) -> Path:
    """Make the environment hold `requirements`, at the versions in `constraints`; returns its Python."""
    python = venv / "bin" / "python"
    if _is_installed(venv, python, digest):
        return python
    _ensure_venv(venv, python)
    _ensure_pip(venv, python)
    torch = next(line for line in requirements if re.split(r"[=<>~ ]", line)[0] == TORCH)
    _install_torch(venv, python, torch, torch_index)
    _install(venv, python, constraints, requirements)
    _remember(venv, digest)
    return python


def _is_installed(venv: Path, python: Path, digest: str) -> bool:
    path = venv / STAMP
    return python.exists() and path.exists() and digest in path.read_text().split()


def _remember(venv: Path, digest: str) -> None:
    """The demo's packages are part of the tests' ones: both digests stay valid until a pin changes."""
    path = venv / STAMP
    known = path.read_text().split() if path.exists() else []
    path.write_text("\n".join([*known[-3:], digest]) + "\n")


def _ensure_venv(venv: Path, python: Path) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if python.exists() and (venv / "lib" / version).is_dir() and _runs(python):
        return
    say(f"making {venv} with Python {sys.version.split()[0]}")
    for entry in venv.iterdir():
        if entry.name != ".setup.lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    command = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"cannot make a virtual environment:\n{done.stdout}{done.stderr}")


def _runs(python: Path) -> bool:
    return subprocess.run([str(python), "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode == 0


def _ensure_pip(venv: Path, python: Path) -> None:
    found = [str(python), "-c", "import pip"]
    if subprocess.run(found, check=False, stderr=subprocess.DEVNULL).returncode == 0:
        return
    say("fetching pip")
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_pip(Path(folder))
        command = [str(python), str(wheel / "pip"), "install", "--no-index", str(wheel)]
        run_quietly("installing pip", command, venv / "pip-itself.log")


def _install_torch(venv: Path, python: Path, torch: str, torch_index: str | None) -> None:
    """Take torch from the given index, or say what its default build means on this machine."""
    if torch_index:
        say(f"installing {torch} from {torch_index}")
        command = [*_pip(python), "install", "--index-url", torch_index, torch]
        _show_progress(run_logged("installing torch", command, venv / "torch.log"))
    elif sys.platform.startswith("linux") and not _has_gpu() and _is_cuda_build(python, torch):
        say(
            "NOTE: torch's usual build for Linux brings CUDA, about 2.7 GB to download; this machine shows "
            "no NVIDIA GPU."
        )
        say(f"      For the CPU build (about 0.2 GB) stop this and add: --torch-index {CPU_INDEX}")


def _is_cuda_build(python: Path, torch: str) -> bool:
    """Whether pip would download the build with CUDA: not if torch is there, or a CPU wheel is at hand."""
    command = [*_pip(python), "install", "--dry-run", "--quiet", "--no-deps", "--report", "-", torch]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return False  # the real command will tell the reason
    urls = [unquote(item["download_info"]["url"]) for item in json.loads(done.stdout)["install"]]
    return any("+cpu" not in url for url in urls)


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--no-color"]


def _install(venv: Path, python: Path, constraints: Path, requirements: list[str]) -> None:
    say(f"installing {len(requirements)} packages and what they need, at pinned versions")
    command = [*_pip(python), "install", "--progress-bar", "raw", "-c", str(constraints), *requirements]
    _show_progress(run_logged("installing the packages", command, venv / "pip.log"))


def _show_progress(lines: Iterable[str]) -> None:
    """Turn pip's output into a few lines: large downloads with their share, then the unpacking."""
    num_found, said_at, current, unpacking = 0, time.monotonic(), "", False
    for line in lines:
        text = line.strip()
        num_found += text.startswith("Collecting ")
        if text.startswith("Downloading "):
            current = text.split()[1].rsplit("/", 1)[-1]
        elif text.startswith("Installing collected packages"):
            unpacking = True
            say(f"  unpacking {text.count(',') + 1} packages (up to a minute)")
        elif not unpacking and time.monotonic() - said_at > REPORT_INTERVAL_S:
            said_at = time.monotonic()
            say("  " + (_download_share(text, current) or f"{num_found} packages found"))


def _download_share(text: str, name: str) -> str | None:
    match = re.fullmatch(r"Progress (\d+) of (\d+)", text)
    if not match or int(match[2]) < LARGE_BYTES:
        return None
    done, total = int(match[1]), int(match[2])
    return f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB ({100 * done // total} %)"
