"""The one exception tree of the control plane and the one shape in which its API reports errors.

    {"error": {"code": "invalid", "message": "...", "retryable": false,
               "mistakes": [{"path": "classes.1.max_wait_s", "message": "..."}]}}

Failures on our side carry an `id` too, which is in the log beside the traceback.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis
from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import Http404
from rest_framework import exceptions as drf
from rest_framework.response import Response

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with the input: `path` as in `classes.1.max_wait_s`, empty for the whole body."""

    path: str
    message: str


class TidegateError(Exception):
    """Something that the caller should know. Subclasses fix the HTTP status and whether a retry can help."""

    code = "internal"
    status = 500
    retryable = False
    retry_after_s: int | None = None

    def __init__(self, message: str, mistakes: Iterable[Mistake] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.mistakes = tuple(mistakes)


class Invalid(TidegateError):
    """The input is wrong; `mistakes` says where."""

    code, status = "invalid", 400


class NotSignedIn(TidegateError):
    """Nobody, or somebody with a wrong password or key."""

    code, status = "not_signed_in", 401


class NotAllowed(TidegateError):
    """Somebody, who may not do this."""

    code, status = "not_allowed", 403


class NotFound(TidegateError):
    """No such object, or none that the caller may see."""

    code, status = "not_found", 404


class MethodNotAllowed(TidegateError):
    """The route exists, the verb does not."""

    code, status = "method_not_allowed", 405


class NotAcceptable(TidegateError):
    """The caller takes no form of answer that there is."""

    code, status = "not_acceptable", 406


class Conflict(TidegateError):
    """The object's state does not allow it."""

    code, status = "conflict", 409


class Changed(TidegateError):
    """Someone else changed the object meanwhile: read it again, then decide."""

    code, status = "changed", 412


class TooLarge(TidegateError):
    """The body exceeds the limit."""

    code, status = "too_large", 413


class UnsupportedMediaType(TidegateError):
    """A body that is not JSON."""

    code, status = "unsupported_media_type", 415


class PreconditionRequired(TidegateError):
    """The request must say which version it was made from."""

    code, status = "precondition_required", 428


class TooMany(TidegateError):
    """Too often, or no room; `retry_after_s` says when to come back."""

    code, status, retryable = "too_many_requests", 429, True

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Internal(TidegateError):
    """A defect of ours."""


class Unavailable(TidegateError):
    """A part that is needed does not answer right now."""

    code, status, retryable = "unavailable", 503, True


def error_body(error: TidegateError, error_id: str = "") -> dict[str, Any]:
    """The error in the API's shape."""
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "mistakes": [{"path": one.path, "message": one.message} for one in error.mistakes],
    }
    if error_id:
        body["id"] = error_id
    return {"error": body}


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's hook: every exception of an API view, expected or not, in the one shape."""
    error = as_tidegate_error(exc)
    error_id = ""
    if error.status >= 500:
        error_id = log_failure(exc)
    response = Response(error_body(error, error_id), status=error.status)
    if error.retry_after_s is not None:
        response["Retry-After"] = str(error.retry_after_s)
    if header := getattr(exc, "auth_header", None):
        response["WWW-Authenticate"] = header
    return response


def log_failure(exc: BaseException) -> str:
    """Log a failure of ours with its traceback; returns the id to quote."""
    error_id = f"e-{secrets.token_hex(4)}"
    logger.error("%s: %s", error_id, exc, exc_info=exc)
    return error_id


def as_tidegate_error(exc: Exception) -> TidegateError:
    """Translate the exceptions of Django and DRF; what is not known is a defect of ours."""
    if isinstance(exc, TidegateError):
        return exc
    if isinstance(exc, Http404):
        return NotFound("There is nothing at this address.")
    if isinstance(exc, PermissionDenied):
        return NotAllowed("Your account may not do this.")
    if isinstance(exc, RequestDataTooBig):
        return TooLarge(f"The body is larger than {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes.")
    if isinstance(exc, drf.APIException):
        return _from_drf(exc)
    if isinstance(exc, redis.RedisError | OperationalError | InterfaceError):
        which = "Redis" if isinstance(exc, redis.RedisError) else "Postgres"
        return Unavailable(f"{which} does not answer right now. Nothing was changed; try again.")
    return Internal("Something failed on our side. Quote the id of this error when you report it.")


def _from_drf(exc: drf.APIException) -> TidegateError:
    if isinstance(exc, drf.ValidationError):
        return Invalid("The input is not valid; see the mistakes.", tuple(_mistakes(exc.detail)))
    if isinstance(exc, drf.ParseError):
        return Invalid(f"The body could not be read. {exc.detail}")
    if isinstance(exc, drf.NotAcceptable):
        return NotAcceptable("The answer is JSON. Send Accept: application/json, or no Accept at all.")
    if isinstance(exc, drf.NotAuthenticated | drf.AuthenticationFailed):
        return NotSignedIn(str(exc.detail))
    if isinstance(exc, drf.Throttled):
        return TooMany(str(exc.detail), retry_after_s=int(exc.wait) + 1 if exc.wait else None)
    kinds: dict[type[drf.APIException], type[TidegateError]] = {
        drf.PermissionDenied: NotAllowed,
        drf.NotFound: NotFound,
        drf.MethodNotAllowed: MethodNotAllowed,
        drf.UnsupportedMediaType: UnsupportedMediaType,
    }
    return next(
        (kind(str(exc.detail)) for base, kind in kinds.items() if isinstance(exc, base)), None
    ) or Internal(str(exc.detail))


def _mistakes(detail: Any, path: str = "") -> Iterator[Mistake]:
    """DRF's nested details, one by one, with the path of each."""
    if isinstance(detail, dict):
        for key, value in detail.items():
            name = "" if key == "non_field_errors" else str(key)
            yield from _mistakes(value, ".".join(part for part in (path, name) if part))
    elif isinstance(detail, list):
        for index, value in enumerate(detail):
            nested = isinstance(value, dict | list)
            yield from _mistakes(value, f"{path}.{index}".strip(".") if nested else path)
    else:
        yield Mistake(path=path, message=str(detail))
