"""Views outside the REST API: the built frontend, and errors that arise before or beside an API view."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views.decorators.cache import cache_control
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe

from controlplane.common.errors import (
    Internal,
    Invalid,
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


@require_safe
@ensure_csrf_cookie
@cache_control(no_cache=True)
def frontend(request: HttpRequest) -> HttpResponse:
    """The page that holds the operators' application; its routes are the client's."""
    page: Path = settings.FRONTEND_DIST / "index.html"
    try:
        return HttpResponse(page.read_bytes())
    except FileNotFoundError:
        return HttpResponse(NOT_BUILT, status=503)


def _answer(error: TidegateError, error_id: str = "") -> HttpResponseBase:
    return JsonResponse(error_body(error, error_id), status=error.status)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponseBase:
    """A form or API call without a valid CSRF token."""
    return _answer(NotAllowed(f"{reason} Read GET /api/v1/session, then send its csrf_token as X-CSRFToken."))


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """Django refused the request itself: an unknown host, too many fields."""
    return _answer(Invalid(str(exception) or "The request cannot be understood."))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    return _answer(NotAllowed("Your account may not do this."))


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    return _answer(NotFound(f"There is nothing at {request.path}."))


def no_such_route(request: HttpRequest) -> HttpResponseBase:
    """Addresses of programs that lead nowhere get an error, not the page for people."""
    return not_found(request, Http404())


def server_error(request: HttpRequest) -> HttpResponseBase:
    """A defect of ours outside the API's views."""
    exc = sys.exc_info()[1] or RuntimeError("unknown failure")
    return _answer(Internal("Something failed on our side. Quote the id of this error."), log_failure(exc))
