"""An operator without a browser: what a test needs to set up through the REST API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

Document = dict[str, Any]


class Operator:
    """Signed in from the start."""

    def __init__(self, info: dict[str, Any]) -> None:
        self._http = httpx.Client(base_url=info["url"], timeout=30)
        token = self._http.get("/api/v1/session").json()["csrf_token"]
        credentials = {"username": info["username"], "password": info["password"]}
        self._post("/api/v1/session", credentials, {"X-CSRFToken": token})

    def active(self) -> dict[str, Any]:
        """The active version."""
        return dict(self._get("/api/v1/policies/active"))

    def cookies(self) -> list[dict[str, str]]:
        """The session, for a browser that need not sign in again."""
        url = str(self._http.base_url)
        return [{"name": name, "value": value, "url": url} for name, value in self._http.cookies.items()]

    def workers(self) -> list[dict[str, Any]]:
        """As `/api/v1/fleet/workers` lists them."""
        return list(self._get("/api/v1/fleet/workers")["results"])

    def publish(self, change: Callable[[Document], None], comment: str) -> int:
        """The active document with a change; returns the new version."""
        active = self.active()
        change(active["document"])
        headers = {"If-Match": f'"v{active["version"]}"', "X-CSRFToken": self._csrf()}
        body = {"document": active["document"], "comment": comment}
        return int(self._post("/api/v1/policies", body, headers)["version"])

    def close(self) -> None:
        self._http.close()

    def _csrf(self) -> str:
        return str(self._get("/api/v1/session")["csrf_token"])

    def _get(self, path: str) -> Any:
        answer = self._http.get(path)
        answer.raise_for_status()
        return answer.json()

    def _post(self, path: str, body: Document, headers: dict[str, str]) -> Any:
        answer = self._http.post(path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()
