"""The bodies of requests in the API's description: the gateway's own schemas."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from controlplane.common.openapi import REF, add_schemas
from controlplane.gateway.schema import ChatBody, CompletionBody

REQUEST_BODY: Final = {"oneOf": [{"$ref": REF.format("ChatBody")}, {"$ref": REF.format("CompletionBody")}]}


def add_request_bodies(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """drf-spectacular's hook: the schemas of the two kinds of body."""
    _, schemas = msgspec.json.schema_components([ChatBody, CompletionBody], ref_template=REF.format("{name}"))
    return add_schemas(result, dict(schemas))
