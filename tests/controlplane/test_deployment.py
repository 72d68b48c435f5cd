"""What ships: the table of settings, the compose file and the images agree with code and linters."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.common.environment import Settings, variable
from deploy.requirements import DEMO, MODEL, name_of, requirements
from scheduler_worker.worker.settings import WorkerSettings

from .settings_table import HEAD, rows

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {variable(one.name) for settings in (Settings, WorkerSettings) for one in fields(settings)}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return content


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(sys.executable).parent / name
    return subprocess.run([path, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


# --- settings ---


def test_the_table_of_settings_is_what_the_code_reads() -> None:
    """If it differs, python -m tests.controlplane.settings_table prints what belongs there."""
    lines = (ROOT / "docs" / "settings.md").read_text().splitlines()
    start = lines.index(HEAD[0])
    assert lines[start : lines.index("", start)] == rows()


def test_every_variable_that_the_project_mentions_is_documented() -> None:
    tracked = [
        path
        for part in ("bin", "controlplane", "deploy", "scheduler_worker")
        for path in (ROOT / part).rglob("*")
    ]
    texts = [path.read_text() for path in tracked if path.suffix in ("", ".py", ".sh") and path.is_file()]
    mentioned = set(re.findall(r"TIDEGATE_[A-Z_]*[A-Z]", "\n".join(texts)))
    internal = {"TIDEGATE_SETUP_S"}  # bin/demo tells its second half how long the first took
    documented = set(re.findall(r"TIDEGATE_[A-Z_]*[A-Z]", (ROOT / "docs" / "settings.md").read_text()))
    assert mentioned - documented - internal == set()


# --- compose ---


def test_compose_fits_its_schema() -> None:
    result = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_passes_every_setting_to_its_services_and_no_other(services: dict[str, Any]) -> None:
    passed = {
        name
        for one in services.values()
        for name in one.get("environment", {})
        if name.startswith("TIDEGATE_")
    }
    assert passed == VARIABLES


def test_compose_names_no_variable_that_is_not_documented() -> None:
    used = set(re.findall(r"\$\{(TIDEGATE_[A-Z_]*[A-Z])", (ROOT / "docker-compose.yml").read_text()))
    documented = set(re.findall(r"`(TIDEGATE_[A-Z_]*[A-Z])`", (ROOT / "docs" / "settings.md").read_text()))
    assert used - documented == set()


def test_compose_has_every_process_of_the_architecture(services: dict[str, Any]) -> None:
    assert services.keys() == {"postgres", "redis", "migrate", "web", "celery", "beat", "worker"}


@pytest.mark.parametrize("name", ["postgres", "redis", "web", "celery", "beat", "worker"])
def test_every_service_that_stays_says_whether_it_is_well(services: dict[str, Any], name: str) -> None:
    assert services[name]["healthcheck"]["test"]


def test_the_worker_reserves_a_gpu(services: dict[str, Any]) -> None:
    (device,) = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


@pytest.mark.parametrize("name", ["web", "celery", "beat"])
def test_processes_that_need_tables_wait_for_the_migration(services: dict[str, Any], name: str) -> None:
    assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_web_ends_open_answers_before_it_would_be_killed(services: dict[str, Any]) -> None:
    command = (ROOT / "Dockerfile").read_text()
    graceful_s = int(re.findall(r'"--timeout-graceful-shutdown", "(\d+)"', command)[0])
    assert graceful_s < int(services["web"]["stop_grace_period"].removesuffix("s"))


# --- images ---


def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    result = tool("hadolint", "--failure-threshold", "style", "Dockerfile")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_image_runs_as_an_ordinary_user() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    final = [stage for stage in stages if "\nCMD " in stage]
    assert [re.findall(r"^USER (\d+)", stage, flags=re.MULTILINE) for stage in final] == [
        ["10001"],
        ["10001"],
    ]


def imports_of(folder: Path, without: str = "/embedded/") -> Iterator[str]:
    """The top-level names that a package's modules import anywhere."""
    for path in folder.rglob("*.py"):
        if without in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0]


def test_the_control_planes_image_has_what_its_code_imports_and_no_torch() -> None:
    """It holds `controlplane`, and of the worker only core, protocol and sim."""
    folders = [
        ROOT / "controlplane",
        *(ROOT / "scheduler_worker" / one for one in ("core", "protocol", "sim")),
    ]
    distributions = packages_distributions()
    imported = {
        name.lower()
        for folder in folders
        for one in imports_of(folder)
        for name in distributions.get(one, [])
    }
    assert imported & (MODEL | DEMO) == set()
    assert "torch" not in {name_of(line) for line in requirements("control-plane", [])}
