"""What the README promises is there: commands, options, folders, links, and Python that compiles."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from controlplane.embedded.demo import DEFAULT_MODEL_NAME
from controlplane.embedded.demo_options import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_PICTURE_BYTES = 300_000


def links(page: Path) -> set[str]:
    """The targets of a page's links within the project, pictures included."""
    found = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    return {target for target in found if "://" not in target}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def test_every_page_of_the_docs_is_linked() -> None:
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= links(PAGES[0])


@pytest.mark.parametrize("command", ["bin/demo", "bin/test"])
def test_both_commands_explain_themselves(command: str) -> None:
    assert f"\n    {command}\n" in README
    done = subprocess.run([ROOT / command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert command in done.stdout


def test_the_table_of_options_is_the_demos() -> None:
    documented = set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE))
    assert documented == {name for action in parser()._actions for name in action.option_strings} - {
        "-h",
        "--help",
    }


def test_every_module_that_is_run_exists() -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert modules
    assert [name for name in modules if find_spec(name) is None] == []


def test_every_folder_of_the_map_exists_and_none_is_missing() -> None:
    table = README.split("## Folders")[1].split("\n## ")[0]
    named = {path for row in table.splitlines() for path in re.findall(r"`([\w/]+)/`", row.split(" | ")[0])}
    assert [path for path in sorted(named) if not (ROOT / path).is_dir()] == []
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert {path.split("/")[0] for path in named} == top


def test_the_python_example_compiles() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    compile(example, "README.md", "exec")


def test_the_picture_is_small_enough_to_load_at_once() -> None:
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert 10_000 < (ROOT / picture).stat().st_size <= MAX_PICTURE_BYTES


def test_the_examples_model_is_the_demos() -> None:
    assert f'"model": "{DEFAULT_MODEL_NAME}"' in README
