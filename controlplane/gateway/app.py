"""The gateway's ASGI application: `/v1/*`, `/healthz`, `/readyz`."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import msgspec
from django.conf import settings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .endpoints import ChatCompletions, Completion, Completions
from .errors import ApiError, InternalError, MethodNotAllowed, NotFound
from .runtime import GatewayRuntime, GatewaySettings, current
from .tokenizer import load_text_model

logger = logging.getLogger(__name__)


# A full collection walks all open streams and samples, 20 to 50 ms, and finds next to nothing: no request leaves cycles
# behind. The defaults had one every 5 s under load; now it is one in many minutes. Each of the others looks at no more
# than 2,000 objects, about a millisecond.
COLLECT_AFTER: Final = (1_000, 1, 5_000)
# A thread that writes rows keeps the event loop from running for up to so long, each time both want to run.
SWITCH_S: Final = 0.0005


class GatewayApp(Starlette):
    """Answers the two endpoints itself: routes and middleware would stand between every token and the socket."""

    completions: Final[dict[str, Completion]] = {
        "/v1/chat/completions": ChatCompletions(),
        "/v1/completions": Completions(),
    }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        endpoint = self.completions.get(scope.get("path", ""))
        if endpoint is not None and scope["type"] == "http" and scope["method"] == "POST":
            await endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build() -> Starlette:
    """The application; the model's tokenizer is read and the loops run within its lifespan."""
    return GatewayApp(
        routes=[
            *(Route(path, one, methods=["POST"]) for path, one in GatewayApp.completions.items()),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _model, methods=["GET"]),
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", _readyz, methods=["GET"]),
        ],
        lifespan=_lifespan,
        exception_handlers={ApiError: _on_error, HTTPException: _on_http_exception, Exception: _on_defect},
    )


@asynccontextmanager
async def _lifespan(_: Starlette) -> AsyncIterator[None]:
    known = settings.TIDEGATE
    model = await asyncio.to_thread(load_text_model, known.model, known.model_name)
    runtime = GatewayRuntime(GatewaySettings.from_django(), model)
    await runtime.start()
    try:
        with _interpreter_without_pauses():
            yield
    finally:
        await runtime.stop()


@contextmanager
def _interpreter_without_pauses() -> Iterator[None]:
    """What was loaded stays: looking through it again and again would stop all streams each time."""
    thresholds, switch_s = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(switch_s)


async def _models(request: Request) -> Response:
    await _authenticate(request)
    return _json({"object": "list", "data": [_model_card()]})


async def _model(request: Request) -> Response:
    await _authenticate(request)
    name = request.path_params["name"]
    if name != current().model.name:
        raise NotFound(f"The model {name!r} does not exist here.", code="model_not_found", param="model")
    return _json(_model_card())


def _model_card() -> dict[str, Any]:
    runtime = current()
    return {
        "id": runtime.model.name,
        "object": "model",
        "created": int(runtime.started_at),
        "owned_by": runtime.pool,
        "max_model_len": runtime.context,
    }


async def _authenticate(request: Request) -> None:
    header = request.headers.get("authorization")
    await current().keys.authenticate(header.encode("latin-1") if header is not None else None)


async def _healthz(_: Request) -> Response:
    """The process answers."""
    return _json({"status": "ok"})


async def _readyz(_: Request) -> Response:
    """Whether a request would be served: policy, worker, Redis, Postgres."""
    checks = await current().readiness()
    ready = all(checks.values())
    return _json({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _error(error: ApiError) -> Response:
    response = _json(error.body(), error.status)
    if error.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    return response


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        response = _error(
            MethodNotAllowed(
                f"{request.url.path} takes {allowed}, not {request.method}.", code="method_not_allowed"
            )
        )
        response.headers["allow"] = allowed
        return response
    return _error(NotFound(f"There is nothing at {request.url.path}.", code="not_found"))


async def _on_defect(_: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return _error(InternalError())
