"""Websocket routes, and the whole websocket side: origin checked, session read."""

from __future__ import annotations

from typing import Any, Final

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.urls import path

from controlplane.telemetry.consumers import LiveConsumer

websocket_urlpatterns: Final = [path("ws/live/", LiveConsumer.as_asgi())]


def websocket_application() -> Any:
    """Origins other than the allowed hosts get 403; without a session the socket is closed with 4401."""
    return AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(websocket_urlpatterns)))
