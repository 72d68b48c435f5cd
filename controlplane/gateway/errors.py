"""Everything that the gateway refuses, as one exception in OpenAI's error shape.

`retryable` says whether the same request may succeed later; `retry_after_s` says when.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refusal: HTTP status, OpenAI's `type`, `code`, `param`, and a message saying what would be right."""

    status = 500
    type = "server_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """The body cannot be served; sending it again will not help."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(ApiError):
    """No key, or one that is not valid (any more)."""

    status = 401
    type = "authentication_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key")


class Forbidden(ApiError):
    """The key may not do this."""

    status = 403
    type = "permission_error"


class NotFound(ApiError):
    """No such model or route."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(ApiError):
    """The route exists, the method does not."""

    status = 405
    type = "invalid_request_error"


class BodyTooLarge(ApiError):
    """More bytes than the gateway reads."""

    status = 413
    type = "invalid_request_error"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The body is larger than {max_bytes} bytes.", code="body_too_large")


class Refused(ApiError):
    """Admission said no; `retry_after_s` is computed from the queue or the quota."""

    status = 429
    type = "rate_limit_error"
    retryable = True


class Unavailable(ApiError):
    """Nobody can serve it now: no live worker, no database, a gateway that is stopping."""

    status = 503
    type = "service_unavailable"
    retryable = True


class GenerationFailed(ApiError):
    """The worker gave up on an accepted request."""

    status = 500
    type = "server_error"
    retryable = True


class InternalError(ApiError):
    """A defect of ours; the log has the traceback."""

    def __init__(self) -> None:
        super().__init__(
            "The gateway failed to handle this request. Its log says why.", code="internal_error"
        )
