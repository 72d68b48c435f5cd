"""What bin/demo and bin/test do before anything is installed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import _chromium
import _frontend
import _index
import _packages
import _process
import _test
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONTENT = b"the wheel"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index on this machine; the folder that it serves at /simple/pip/."""
    folder = tmp_path / "simple" / "pip"
    folder.mkdir(parents=True)
    (folder / _index.PIP_WHEEL).write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setattr(_index, "PIP_SHA256", hashlib.sha256(CONTENT).hexdigest())
    yield folder
    server.shutdown()
    server.server_close()


def page(folder: Path, text: str) -> None:
    (folder / "index.html").write_text(text)


def test_pip_is_found_on_an_index_of_links(index: Path, tmp_path: Path) -> None:
    page(index, f'<a href="{_index.PIP_WHEEL}#sha256=0">pip</a>')
    assert _index.fetch_pip(tmp_path).read_bytes() == CONTENT


def test_pip_is_found_on_an_index_that_answers_in_json(index: Path, tmp_path: Path) -> None:
    page(index, json.dumps({"files": [{"filename": _index.PIP_WHEEL, "url": _index.PIP_WHEEL}]}))
    assert _index.fetch_pip(tmp_path).read_bytes() == CONTENT


def test_another_file_under_pips_name_is_refused(index: Path, tmp_path: Path) -> None:
    (index / _index.PIP_WHEEL).write_bytes(b"something else")
    page(index, f'<a href="{_index.PIP_WHEEL}">pip</a>')
    with pytest.raises(_process.StepError, match="has sha256 .*, expected"):
        _index.fetch_pip(tmp_path)


def test_an_index_without_that_pip_is_named(index: Path, tmp_path: Path) -> None:
    page(index, "nothing here")
    with pytest.raises(_process.StepError, match=r"127\.0\.0\.1.* does not have pip-"):
        _index.fetch_pip(tmp_path)


def test_an_unreachable_index_is_told_with_the_settings_that_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    with pytest.raises(_process.StepError, match="PIP_INDEX_URL") as caught:
        _index.fetch_pip(tmp_path)
    assert "secret" not in str(caught.value)


def test_a_configuration_file_names_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://packages.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert _index.pip_setting("index-url") == "https://packages.example/simple"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((18, 20), False),
        ((20, 18), False),
        ((20, 19), True),
        ((21, 7), False),
        ((22, 12), True),
        ((25, 0), True),
    ],
)
def test_a_node_is_new_enough_if_the_build_tools_run_on_it(version: tuple[int, int], expected: bool) -> None:
    assert _frontend._is_new_enough(*version) is expected


def test_without_a_node_on_the_path_the_one_of_the_wheel_brings_a_working_npm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "path"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tools))
    _frontend.ensure_node(tmp_path, Path(sys.executable))
    environment = {**os.environ, **_frontend.node_environment(tmp_path)}
    npm = shutil.which("npm", path=environment["PATH"])
    done = subprocess.run([npm, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.split(".")[0]) >= 10


def test_a_command_that_another_one_started_keeps_the_node_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bin/test` puts the scripts on the path; the demo that a test starts must not take them for a system's."""
    monkeypatch.setenv("PATH", "/nowhere")
    _frontend.ensure_node(tmp_path, Path(sys.executable))
    monkeypatch.setenv("PATH", _frontend.node_environment(tmp_path)["PATH"])
    _frontend.ensure_node(tmp_path, Path(sys.executable))
    assert (tmp_path / "node-bin" / "node").exists()


def test_the_frontend_is_built_again_only_when_a_source_changed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.ts").write_text("one")
    (tmp_path / "dist").mkdir()
    before = _frontend._sources_digest(tmp_path)
    (tmp_path / "dist" / "main.js").write_text("built")
    assert _frontend._sources_digest(tmp_path) == before
    (tmp_path / "src" / "main.ts").write_text("two")
    assert _frontend._sources_digest(tmp_path) != before


def test_packages_for_tests_stay_valid_for_the_demo(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    _packages._remember(tmp_path, "demo-digest")
    _packages._remember(tmp_path, "test-digest")
    assert _packages._is_installed(tmp_path, python, "demo-digest")
    assert not _packages._is_installed(tmp_path, python, "another-digest")


def test_a_failed_step_shows_the_end_of_its_output_without_colours(tmp_path: Path) -> None:
    code = r"print('\033[31mout of disk\033[0m'); raise SystemExit(1)"
    with pytest.raises(_process.StepError, match="npm ci failed .*:\nout of disk"):
        _process.run_quietly("npm ci", [sys.executable, "-c", code], tmp_path / "log")


def test_large_downloads_show_their_share() -> None:
    shown = _packages._download_share("Progress 50000000 of 200000000", "torch.whl")
    assert shown == "torch.whl: 50 of 200 MB (25 %)"


def test_a_browser_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_CHROMIUM", "/opt/my/chromium")
    assert _chromium.ensure(ROOT)["TIDEGATE_CHROMIUM"] == "/opt/my/chromium"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 failed, 27 passed, 18 deselected in 1.04s", (27, 1)),
        ("======= 3 passed, 1 warning, 2 errors in 0.51s =======", (3, 2)),
        ("      Tests  12 passed (12)", (12, 0)),
        (" Test Files  2 passed (2)", (0, 0)),
        ("a test that says 5 passed", (0, 0)),
    ],
)
def test_the_summary_counts_what_the_runners_report(line: str, expected: tuple[int, int]) -> None:
    outcome = _test.Outcome("python", is_ok=True, elapsed_s=0.0)
    _test.count_tests(line, outcome)
    assert (outcome.num_passed, outcome.num_failed) == expected


MEETS_THE_OTHER = """
import pathlib, sys, time
mine, other = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
mine.touch()
for _ in range(1000):
    if other.exists():
        break
    time.sleep(0.02)
print(f"{int(other.exists())} passed, {sys.argv[3]} failed in 1.0s")
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("num_failed", "is_ok"), [(0, True), (1, False)])
def test_commands_at_once_meet_and_both_count(tmp_path: Path, num_failed: int, is_ok: bool) -> None:
    paths = [str(tmp_path / name) for name in ("one", "two")]
    commands = [
        (sys.executable, "-c", MEETS_THE_OTHER, *order, str(number))
        for order, number in ((paths, num_failed), (paths[::-1], 0))
    ]
    outcome = _test.run_step(_test.Step("python", tuple(commands), tmp_path, at_once=True))
    assert (outcome.num_passed, outcome.num_failed, outcome.is_ok) == (2, num_failed, is_ok)


def test_the_output_of_commands_at_once_is_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = (sys.executable, "-c", "import time; print('a1', flush=True); time.sleep(1); print('a2')")
    quick = (sys.executable, "-c", "print('b1'); print('b2')")
    _test.run_step(_test.Step("python", (slow, quick), tmp_path, at_once=True))
    shown = [line for line in capsys.readouterr().out.splitlines() if len(line) == 2]
    assert shown == ["a1", "a2", "b1", "b2"]


def test_the_python_tests_are_parted_without_a_rest() -> None:
    """What one of the two leaves out by name, the other names."""
    first, second = _test.python_tests()
    left_out = {part.removeprefix("--ignore=") for part in first if part.startswith("--ignore=")}
    assert left_out == {part for part in second if part.startswith("tests/")}
    assert all((ROOT / path).is_dir() for path in left_out)


def run_demo(*arguments: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path}
    command = [str(ROOT / "bin" / "demo"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_help_needs_no_set_up() -> None:
    assert "--data-dir" in run_demo("--help").stdout


def test_a_wrong_option_is_told_before_any_set_up() -> None:
    done = run_demo("--port", "tide")
    assert (done.returncode, "'tide' is not a port" in done.stderr) == (2, True)


def test_an_old_python_is_told_with_the_version_that_is_needed(tmp_path: Path) -> None:
    for name in ("dirname", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name))
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run_demo(path=str(tmp_path))
    assert (done.returncode, "needs Python 3.11 or newer" in done.stderr) == (1, True)
