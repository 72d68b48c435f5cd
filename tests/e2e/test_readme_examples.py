"""The README's examples, word for word, against the running system."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.demo.running import ROOT, RunningDemo

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(400),
    pytest.mark.browser,
]  # with the others of this system

SECTION = (ROOT / "README.md").read_text().split("## A request")[1].split("\n## ")[0]


@pytest.fixture
def checkout(system: RunningDemo, tmp_path: Path) -> Path:
    """A folder in which `.tidegate` is the running system's data directory."""
    (tmp_path / ".tidegate").symlink_to(system.data_dir)
    return tmp_path


def output_of(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(
    shutil.which("curl") is None,
    reason="the README's shell example needs curl, and this machine has none: install it to run this test",
)
def test_the_shell_example_streams_an_answer(checkout: Path) -> None:
    (example,) = re.findall(r"\n\n((?:    .+\n)+)", SECTION.split("```python")[0])
    assert output_of(["bash", "-ec", dedent(example)], checkout).endswith("data: [DONE]\n\n")


def test_the_python_example_streams_an_answer(checkout: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    assert output_of([sys.executable, "-c", example], checkout) == "The capital of France is Paris."
