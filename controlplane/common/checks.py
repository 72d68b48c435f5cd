"""System checks: what is configured but cannot work, with a hint. `check --deploy` asks Redis too."""

from __future__ import annotations

from typing import Any

import redis
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from controlplane.common.connections import redis_client


@register()
def check_frontend(**_: Any) -> list[CheckMessage]:
    """The pages need the built frontend."""
    if (settings.FRONTEND_DIST / "index.html").is_file():
        return []
    hint = "Run npm ci && npm run build in frontend/, and start the web process again."
    return [Warning("The frontend is not built: the pages cannot be served.", hint=hint, id="tidegate.W001")]


@register(Tags.security, deploy=True)
def check_debug(**_: Any) -> list[CheckMessage]:
    """Debug pages show settings to strangers."""
    if not settings.TIDEGATE.debug:
        return []
    return [Error("TIDEGATE_DEBUG is on.", hint="Unset it in production.", id="tidegate.E001")]


@register("redis", deploy=True)
def check_redis(**_: Any) -> list[CheckMessage]:
    """Redis holds accepted requests: it must answer, and must not evict keys."""
    try:
        policy = redis_client().config_get("maxmemory-policy").get("maxmemory-policy", "")
    except redis.RedisError as error:
        hint = "Is TIDEGATE_REDIS_URL right, and is the server up?"
        return [Error(f"Redis does not answer: {error}", hint=hint, id="tidegate.E002")]
    if policy == "noeviction":
        return []
    hint = "Set maxmemory-policy to noeviction: an evicted key is a lost request."
    return [Error(f"Redis evicts keys by {policy}.", hint=hint, id="tidegate.E003")]
