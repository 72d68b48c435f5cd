# ruff: noqa: E402 (Django must be set up before anything that imports its models)
"""The web process: the gateway ahead of Django, websockets beside it, one lifespan around all.

python -m uvicorn controlplane.asgi:application --port 8000
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from django.conf import settings
from starlette.applications import Starlette
from starlette.routing import Router

from controlplane.common.body_limit import BodyLimit
from controlplane.gateway import app as gateway_app
from controlplane.telemetry import folder
from controlplane.telemetry.routing import websocket_application

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GATEWAY_PATHS: Final = ("/v1/", "/healthz", "/readyz")

gateway = gateway_app.build()
websockets = websocket_application()
pages = BodyLimit(django_application, settings.TIDEGATE.max_body_bytes)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Gateway and telemetry run as long as the process serves; telemetry stops first."""
    async with gateway.router.lifespan_context(gateway):
        await folder.start(settings.TIDEGATE.pool)
        try:
            yield
        finally:
            await folder.stop()


_lifespans = Router(lifespan=lifespan)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each connection to the part that serves it."""
    if scope["type"] == "lifespan":
        await _lifespans(scope, receive, send)
    elif scope["type"] == "websocket":
        await websockets(scope, receive, send)
    elif scope["path"].startswith(GATEWAY_PATHS):
        await gateway(scope, receive, send)
    else:
        await pages(scope, receive, send)
