"""Programs are known by an API key of a tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import AnonymousUser
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from controlplane.tenants.selectors import KeyInfo, find_key

if TYPE_CHECKING:
    from rest_framework.views import APIView


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer tg_…`; `request.auth` becomes the key's `KeyInfo`."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, KeyInfo] | None:
        scheme, _, token = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        key = find_key(token.strip().decode("latin-1"))
        if key is None:
            raise AuthenticationFailed("The API key is unknown, revoked or expired.")
        return AnonymousUser(), key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="api"'


class HasApiKey(BasePermission):
    """A program with an API key."""

    message = "This needs an API key: Authorization: Bearer tg_…"

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.auth, KeyInfo)


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = ApiKeyAuthentication
    name = "key"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "An API key of a tenant."}
