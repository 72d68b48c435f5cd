"""Views outside the REST API: the built frontend, and errors that arise before or beside an API view.

Programs get an error in the API's one shape; a browser gets a page that leads back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Final

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.template.loader import render_to_string
from django.utils.cache import patch_vary_headers
from django.views.decorators.cache import cache_control
from django.views.decorators.csrf import ensure_csrf_cookie

from controlplane.common.errors import (
    Internal,
    Invalid,
    MethodNotAllowed,
    NotAllowed,
    NotFound,
    TidegateError,
    error_body,
    log_failure,
)

NOT_BUILT: Final = (
    "<!doctype html><title>Tidegate</title><p>The frontend is not built yet. Run "
    "<code>npm ci && npm run build</code> in <code>frontend/</code>, then reload this page."
)


SAFE: Final = ("GET", "HEAD")
View = Callable[[HttpRequest], HttpResponseBase]


def read_only(view: View) -> View:
    """A view that takes GET and HEAD, and answers other verbs as all errors are answered."""

    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponseBase:
        return view(request) if request.method in SAFE else _not_allowed(request)

    return guarded


@read_only
@ensure_csrf_cookie
@cache_control(no_cache=True)
def frontend(request: HttpRequest) -> HttpResponse:
    """The page that holds the operators' application; its routes are the client's."""
    page: Path = settings.FRONTEND_DIST / "index.html"
    try:
        return HttpResponse(page.read_bytes())
    except FileNotFoundError:
        return HttpResponse(NOT_BUILT, status=503)


PAGES: Final = {"live": "Live", "policies": "Policies", "playground": "Playground"}
HEADINGS: Final = {
    400: "This request cannot be understood",
    403: "You may not do this",
    404: "There is no such page",
    405: "This page can only be read",
    500: "Something failed on our side",
}


def _answer(request: HttpRequest, error: TidegateError, error_id: str = "") -> HttpResponseBase:
    wanted = request.get_preferred_type(["application/json", "text/html"])
    if wanted == "text/html":
        response: HttpResponseBase = _page(request, error, error_id)
    else:
        response = JsonResponse(error_body(error, error_id), status=error.status)
    patch_vary_headers(response, ["Accept"])
    return response


def _not_allowed(request: HttpRequest) -> HttpResponseBase:
    response = _answer(request, MethodNotAllowed(f"{request.path} can be read, but takes no {request.method}."))
    response["Allow"] = ", ".join(SAFE)
    return response


def _page(request: HttpRequest, error: TidegateError, error_id: str) -> HttpResponse:
    first = request.path.strip("/").split("/")[0].lower()
    close = get_close_matches(first, PAGES, n=1) if error.status == 404 else []
    context = {
        "heading": HEADINGS.get(error.status, HEADINGS[500]),
        "message": error.message,
        "error_id": error_id,
        "meant": close[0] if close else "",
        "pages": PAGES,
    }
    return HttpResponse(render_to_string("error.html", context), status=error.status)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponseBase:
    """A form or API call without a valid CSRF token."""
    return _answer(request, NotAllowed(f"{reason} Read GET /api/v1/session, then send its csrf_token as X-CSRFToken."))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """Django refused the request itself: an unknown host, too many fields."""
    return _answer(request, Invalid(str(exception) or "The request cannot be understood."))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    return _answer(request, NotAllowed("Your account may not do this."))


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    return _answer(request, NotFound(f"There is nothing at {request.path}."))


def no_such_route(request: HttpRequest) -> HttpResponseBase:
    """Addresses of programs that lead nowhere get an error, not the page for people."""
    return not_found(request, Http404())


def server_error(request: HttpRequest) -> HttpResponseBase:
    """A defect of ours outside the API's views."""
    exc = sys.exc_info()[1] or RuntimeError("unknown failure")
    return _answer(request, Internal("Something failed on our side. Quote the id of this error."), log_failure(exc))
