"""Fetches the one file that must come before pip: pip's own wheel, from the index that pip would use."""

from __future__ import annotations

import base64
import configparser
import hashlib
import html
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from _process import StepError

PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
DEFAULT_INDEX = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
TIMEOUT_S = 60


def pip_setting(name: str) -> str | None:
    """A setting as pip reads it: the environment, then the user's and the machine's configuration files."""
    from_environment = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if from_environment:
        return from_environment
    found = None
    for path in _config_files():  # later files win
        parser = configparser.RawConfigParser()
        parser.read(path)
        for section in ("global", "install"):
            found = parser.get(section, name, fallback=None) or found
    return found


def _config_files() -> list[Path]:
    home = Path.home()
    machine = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    if sys.platform == "darwin":
        machine.append(Path("/Library/Application Support/pip/pip.conf"))
        user = [home / "Library/Application Support/pip/pip.conf"]
    else:
        user = [Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "pip/pip.conf"]
    files = [*machine, home / ".pip/pip.conf", *user]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(os.environ["PIP_CONFIG_FILE"]))
    return files


def fetch_pip(target_dir: Path) -> Path:
    """Download the pinned pip wheel and check its sha256.

    Raises:
        StepError: the index cannot be reached, lacks the file, or sends another one.
    """
    index = (pip_setting("index-url") or DEFAULT_INDEX).rstrip("/") + "/pip/"
    url = _find_file(index, _get(index, ACCEPT))
    content = _get(url, "*/*")
    found = hashlib.sha256(content).hexdigest()
    if found != PIP_SHA256:
        raise StepError(f"{PIP_WHEEL} from the package index has sha256 {found}, expected {PIP_SHA256}")
    wheel = target_dir / PIP_WHEEL
    wheel.write_bytes(content)
    return wheel


def _find_file(index: str, page: bytes) -> str:
    text = page.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        links = {file["filename"]: file["url"] for file in json.loads(text)["files"]}
    else:
        found = re.findall(r'href="([^"]+)"', text)
        links = {link.split("#")[0].rsplit("/", 1)[-1]: html.unescape(link) for link in found}
    if PIP_WHEEL not in links:
        raise StepError(f"the package index at {_without_password(index)} does not have {PIP_WHEEL}")
    return urllib.parse.urljoin(index, links[PIP_WHEEL])


def _get(url: str, accept: str) -> bytes:
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(_without_password(url), headers={"Accept": accept})
    if parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    context = ssl.create_default_context(cafile=pip_setting("cert"))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, TimeoutError) as error:
        raise StepError(
            f"cannot fetch {_without_password(url)}: {error}.\n"
            "Behind a proxy set HTTPS_PROXY; for another index set PIP_INDEX_URL; "
            "for certificates of your own set PIP_CERT."
        ) from error


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
