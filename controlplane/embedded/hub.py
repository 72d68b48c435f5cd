"""Whether a model that is no directory can be had at all: asked before anything heavy is started."""

from __future__ import annotations

import httpx

from .errors import EmbeddedServiceError

TIMEOUT_S = 10.0
FILE = "config.json"
WAY_OUT = "Name a directory that holds config.json, or leave --model out for the model that the demo brings."


def require_model(name: str) -> None:
    """Return if the model is in the local cache or on the hub.

    Raises:
        EmbeddedServiceError: it is not, and why, in one sentence.
    """
    from huggingface_hub import constants, get_token, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, FILE), str):
            return
    except HFValidationError:
        raise EmbeddedServiceError(f"--model {name}: neither a directory nor the id of a model. {WAY_OUT}") from None
    if constants.HF_HUB_OFFLINE:
        raise EmbeddedServiceError(f"{_not_here(name)}, and HF_HUB_OFFLINE forbids to fetch it. {WAY_OUT}")
    _require_on_hub(name, constants.ENDPOINT, get_token())


def _require_on_hub(name: str, endpoint: str, token: str | None) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{endpoint}/{name}/resolve/main/{FILE}"
    try:
        answer = httpx.head(url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        reason = f"{endpoint} cannot be reached ({type(error).__name__})"
        raise EmbeddedServiceError(f"{_not_here(name)}, and {reason}. {WAY_OUT}") from None
    if answer.is_client_error:
        reason = f"{endpoint} has no such model, or not for you (HTTP {answer.status_code})"
        raise EmbeddedServiceError(f"{_not_here(name)}, and {reason}. {WAY_OUT}")


def _not_here(name: str) -> str:
    return f"--model {name}: there is no such directory, the model is not in the local cache"
