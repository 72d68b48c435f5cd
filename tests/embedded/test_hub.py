"""A model that cannot be had is one clear sentence, before anything is started."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controlplane.embedded.demo import named_model
from controlplane.embedded.errors import EmbeddedServiceError

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from controlplane.embedded.demo import named_model; print(named_model(sys.argv[1]))"


class Hub(BaseHTTPRequestHandler):
    """Knows one model."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/acme/tiny/resolve/main/config.json" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def name_it(tmp_path: Path, name: str, **env: str) -> str:
    """What a process with an empty cache makes of a model's name: its path or id, or the error."""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **env}
    asked = subprocess.run(
        [sys.executable, "-c", CODE, name], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    return asked.stdout.strip() or asked.stderr.strip().splitlines()[-1].partition("Error: ")[2]


def test_a_model_that_the_hub_has_is_taken(tmp_path: Path, hub: str) -> None:
    assert name_it(tmp_path, "acme/tiny", HF_ENDPOINT=hub) == "acme/tiny"


def test_a_model_that_the_hub_lacks_is_one_sentence(tmp_path: Path, hub: str) -> None:
    assert name_it(tmp_path, "none-such", HF_ENDPOINT=hub) == (
        "--model none-such: there is no such directory, the model is not in the local cache, "
        f"and {hub} has no such model, or not for you (HTTP 404). "
        "Name a directory that holds config.json, or leave --model out for the model that the demo brings."
    )


def test_without_a_connection_the_sentence_says_so(tmp_path: Path) -> None:
    said = name_it(tmp_path, "none-such", HF_ENDPOINT="http://127.0.0.1:1")
    assert "and http://127.0.0.1:1 cannot be reached (ConnectError). Name a directory" in said


def test_offline_mode_asks_nobody(tmp_path: Path) -> None:
    assert "and HF_HUB_OFFLINE forbids to fetch it." in name_it(tmp_path, "none-such", HF_HUB_OFFLINE="1")


def test_what_is_neither_a_path_nor_an_id_is_refused() -> None:
    with pytest.raises(EmbeddedServiceError, match="neither a directory nor the id of a model"):
        named_model("a/b/c")
