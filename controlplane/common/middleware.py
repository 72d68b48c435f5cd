"""Security headers that Django does not set by itself, and files without streaming."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any, Final

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import StaticFile

ASSETS: Final = "/assets/"

# Styles: Mantine and the charts set them on elements. Images: the API documentation uses data URLs.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


def _add(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    return response


@sync_and_async_middleware
def content_security_policy(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Nothing from other origins, no inline scripts, no framing: on every response of Django."""
    if iscoroutinefunction(get_response):

        async def over_async(request: HttpRequest) -> HttpResponse:
            response: Awaitable[HttpResponse] = get_response(request)
            return _add(await response)

        return over_async

    def over_sync(request: HttpRequest) -> HttpResponse:
        return _add(get_response(request))

    return over_sync


class Files(WhiteNoiseMiddleware):
    """WhiteNoise without its streams: under ASGI Django would read them whole anyway, with a warning.

    The frontend may be built anew while this process runs: its assets are looked for when they are asked for.
    """

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith(ASSETS):
            self._look_again(request.path_info)
        return super().__call__(request)

    def _look_again(self, url: str) -> None:
        """Know a new file, forget one that is gone."""
        root = os.path.join(settings.FRONTEND_DIST, "")
        path = os.path.join(root, url[1:])
        if not (self.url_is_canonical(url) and self.path_is_child_of(path, root) and os.path.isfile(path)):
            self.files.pop(url, None)
        elif url not in self.files:
            self.add_file_to_dictionary(url, path)

    @staticmethod
    def serve(static_file: StaticFile, request: HttpRequest) -> HttpResponse:
        """The file, or 304, or the range asked for."""
        found = static_file.get_response(request.method, request.META)
        with found.file or BytesIO() as file:
            response = HttpResponse(file.read(), status=int(found.status))
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response
