"""What drf-spectacular cannot see by itself: the one shape of errors. Apps add the documents they define."""

from __future__ import annotations

from typing import Any, Final

REF: Final = "#/components/schemas/{}"

ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "retryable", "mistakes"],
            "properties": {
                "code": {"type": "string", "description": "For programs: invalid, not_found, changed, …"},
                "message": {
                    "type": "string",
                    "description": "For people: what was wrong and what would be right.",
                },
                "retryable": {
                    "type": "boolean",
                    "description": "Whether the same request can succeed later.",
                },
                "mistakes": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["path", "message"],
                        "properties": {
                            "path": {"type": "string", "examples": ["classes.1.max_wait_s"]},
                            "message": {"type": "string"},
                        },
                    },
                },
                "id": {
                    "type": "string",
                    "description": "With failures on the server's side: find it in the log.",
                },
            },
        }
    },
}
ERROR_RESPONSE: Final = {
    "description": "Any refusal or failure, in one shape.",
    "content": {"application/json": {"schema": {"$ref": REF.format("Error")}}},
}


def add_schemas(result: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The document with further named schemas."""
    result.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return result


def add_errors(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """drf-spectacular's hook: every operation may answer with an error in the one shape."""
    for path in result["paths"].values():
        for operation in path.values():
            operation["responses"]["default"] = ERROR_RESPONSE
    return add_schemas(result, {"Error": ERROR})
