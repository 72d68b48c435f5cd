"""Operators are known by Django's session."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request


class OperatorSession(SessionAuthentication):
    """Django's session, with a CSRF token on every write. Answers 401, not 403, when nobody is signed in."""

    def authenticate_header(self, request: Request) -> str:
        return 'Session realm="operators"'


class OperatorSessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = OperatorSession
    name = "operator"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": "sessionid",
            "description": "Signed in by POST /api/v1/session; writes also need X-CSRFToken.",
        }
