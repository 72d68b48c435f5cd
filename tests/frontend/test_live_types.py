"""The browser's types mirror what the server sends and what operators tune; here the copies are compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

from controlplane.telemetry import schema
from scheduler_worker.core.policy import check_policy, policy_schema

FRONTEND = Path(__file__).parents[2] / "frontend"
STRUCTS = {
    name: value
    for name, value in vars(schema).items()
    if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
}


def interfaces() -> dict[str, dict[str, str]]:
    """Every `export interface` of `live.ts`: its fields with their types, as written."""
    source = (FRONTEND / "src/api/live.ts").read_text()
    blocks = re.findall(r"export interface (\w+) \{\n(.*?)\n\}", source, re.DOTALL)
    return {name: dict(re.findall(r"^  (\w+): (.+);$", body, re.MULTILINE)) for name, body in blocks}


def sent_fields(struct: type[msgspec.Struct]) -> set[str]:
    """The JSON names of a message, its tag included."""
    tag = struct.__struct_config__.tag_field
    return set(struct.__struct_encode_fields__) | ({tag} if tag else set())


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_the_browser_knows_exactly_the_fields_that_are_sent(name: str) -> None:
    assert set(interfaces().get(name, {})) == sent_fields(STRUCTS[name])


def test_the_browser_knows_no_message_that_is_never_sent() -> None:
    assert set(interfaces()) == set(STRUCTS)


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_what_may_be_unknown_may_be_null_in_the_browser(name: str) -> None:
    hints = get_type_hints(STRUCTS[name])
    optional = {field for field, hint in hints.items() if type(None) in get_args(hint)}
    nullable = {field for field, hint in interfaces()[name].items() if hint.endswith("| null")}
    assert nullable == optional & set(STRUCTS[name].__struct_encode_fields__)


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_the_browser_knows_every_choice_of_a_field(name: str) -> None:
    source = (FRONTEND / "src/api/live.ts").read_text()
    aliases = dict(re.findall(r"export type (\w+) = (.+);", source))
    for field, hint in get_type_hints(STRUCTS[name]).items():
        choices = literal_choices(hint)
        if choices:
            written = interfaces()[name][field].removesuffix(" | null")
            assert set(re.findall(r"'(\w+)'", aliases.get(written, written))) == choices, field


def literal_choices(hint: object) -> set[str]:
    for one in (hint, *get_args(hint)):
        if get_origin(one) is Literal:
            return set(get_args(one))
    return set()


def test_the_form_is_tested_with_the_schema_of_today() -> None:
    assert json.loads((FRONTEND / "dev/policy-schema.json").read_text()) == policy_schema()


def test_the_mock_backend_serves_a_valid_policy() -> None:
    check_policy(json.loads((FRONTEND / "dev/policy.json").read_text()))
