"""The policy document in the API's description: the core's own schema."""

from __future__ import annotations

from typing import Any, Final

from controlplane.common.openapi import REF, add_schemas
from scheduler_worker.core.policy import Policy

POLICY_REF: Final = {"$ref": REF.format("Policy")}


def add_policy(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """drf-spectacular's hook: the schemas of a policy and its sections."""
    policy = Policy.model_json_schema(ref_template=REF.format("{model}"))
    return add_schemas(result, {**policy.pop("$defs"), "Policy": policy})
