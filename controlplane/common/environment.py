"""The control plane's settings: typed, frozen, read once from the environment, loud.

`read(environ)` collects every mistake, so that one start names all of them, each with its remedy. Code reads
the values from `django.conf.settings.TIDEGATE`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from scheduler_worker.protocol.keys import GATEWAY_LEASE_S

PREFIX: Final = "TIDEGATE_"
SLUG: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
YES: Final = frozenset({"1", "true", "yes", "on"})
NO: Final = frozenset({"0", "false", "no", "off"})
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
MIN_SECRET_LENGTH: Final = 32


class SettingsError(RuntimeError):
    """The environment cannot be used; the message names every wrong setting and how to mend it."""


def parse_text(value: str) -> str:
    return value


def parse_slug(value: str) -> str:
    if not SLUG.match(value):
        raise ValueError("use lower-case letters, digits and -, at most 63, starting with a letter or digit")
    return value


def parse_bool(value: str) -> bool:
    if value.lower() in YES | NO:
        return value.lower() in YES
    raise ValueError("use one of 1, true, yes, on, 0, false, no, off")


def parse_list(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse_origins(value: str) -> tuple[str, ...]:
    origins = parse_list(value)
    for origin in origins:
        if urlsplit(origin).scheme not in ("http", "https"):
            raise ValueError(f"{origin} has no scheme; write https://{origin}")
    return origins


def parse_secret(value: str) -> str:
    if len(value) < MIN_SECRET_LENGTH:
        raise ValueError(
            f"it is {len(value)} characters long and needs {MIN_SECRET_LENGTH}; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe(48))"'
        )
    return value


def parse_log_level(value: str) -> str:
    if value.upper() not in LOG_LEVELS:
        raise ValueError(f"use one of {', '.join(LOG_LEVELS)}")
    return value.upper()


def parse_database_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("postgresql", "postgres") or not url.hostname or not url.path.strip("/"):
        raise ValueError("use postgresql://user:password@host:port/name")
    return value


def parse_redis_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise ValueError("use redis://:password@host:port/0")
    return value


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers within bounds, both included."""

    def parse(value: str) -> int:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ValueError(f"use a whole number from {least} to {most}")
        return int(value)

    return parse


def seconds(least: float, most: float) -> Callable[[str], float]:
    """A parser of durations within bounds, both included."""

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise ValueError(f"use seconds, from {least:g} to {most:g}")
        return number

    return parse


def setting(parse: Callable[[str], Any], meaning: str, **default: Any) -> Any:
    """A field of `Settings`: how it is parsed and what it means; without a default it is required."""
    return field(metadata={"parse": parse, "meaning": meaning}, **default)


def _own_name() -> str:
    return re.sub(r"[^a-z0-9-]", "-", f"web-{socket.gethostname().lower()}")[:63].strip("-")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that differs between two installations. `variable` names a field in the environment."""

    database_url: str = setting(parse_database_url, "Postgres: postgresql://user:password@host:port/name")
    redis_url: str = setting(parse_redis_url, "Redis or Valkey: redis://:password@host:port/0")
    secret_key: str = setting(
        parse_secret, "Signs sessions; at least 32 characters, the same in every process"
    )
    pool: str = setting(parse_slug, "The pool's name: a model and its workers", default="default")
    model: str = setting(
        parse_text, "Directory or hub id of the model; the web process reads its tokenizer there", default=""
    )
    model_name: str = setting(
        parse_text, "The name that /v1/models shows; empty: the directory's name", default=""
    )
    allowed_hosts: tuple[str, ...] = setting(
        parse_list,
        "Host names that the web process answers to, by comma",
        default=("localhost", "127.0.0.1", "[::1]"),
    )
    csrf_origins: tuple[str, ...] = setting(
        parse_origins, "Origins that may send forms, by comma, with scheme; needed behind a proxy", default=()
    )
    debug: bool = setting(parse_bool, "Django's debug pages; never in production", default=False)
    https: bool = setting(
        parse_bool, "The proxy in front speaks HTTPS: cookies become secure, HSTS is sent", default=False
    )
    log_level: str = setting(parse_log_level, "DEBUG, INFO, WARNING or ERROR", default="INFO")
    metrics_token: str = setting(
        parse_secret,
        "/metrics wants `Authorization: Bearer` and this, at least 32 characters; empty: it answers this host only",
        default="",
    )
    database_connections: int = setting(
        whole_number(1, 1000), "Most Postgres connections of one process", default=16
    )
    gateway_id: str = setting(
        parse_slug, "Names this web process; unique among those that run", default_factory=_own_name
    )
    max_body_bytes: int = setting(
        whole_number(1024, 1 << 30), "Larger request bodies are refused with 413", default=4 * 1024 * 1024
    )
    disconnect_grace_s: float = setting(
        seconds(0, 3600), "How long a request outlives its client's connection", default=0.0
    )
    result_ttl_s: int = setting(
        whole_number(60, 604_800),
        "How long the output of POST /api/v1/requests can be fetched where the tenant keeps no payload",
        default=3600,
    )
    lost_after_s: float = setting(
        seconds(2 * GATEWAY_LEASE_S, 86_400),
        "A request that neither Redis nor a gateway knows is given up after this time",
        default=60.0,
    )


def variable(name: str) -> str:
    """The environment variable of a field of `Settings`."""
    return PREFIX + name.upper()


def is_required(one: Field[Any]) -> bool:
    """Whether a field of `Settings` has no default."""
    return one.default is MISSING and one.default_factory is MISSING


def read(environ: Mapping[str, str]) -> Settings:
    """The settings of an environment; raises `SettingsError` with every mistake and its remedy."""
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for one in fields(Settings):
        try:
            values.update(_read_one(one, environ))
        except ValueError as error:
            mistakes.append(f"{variable(one.name)}: {error}.")
    if mistakes:
        raise SettingsError(
            "\n  ".join(["The settings cannot be used (docs/settings.md has the table):", *mistakes])
        )
    return Settings(**values)


def _read_one(one: Field[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    value = environ.get(variable(one.name), "")
    if value:
        return {one.name: one.metadata["parse"](value)}
    if is_required(one):
        raise ValueError(f"it is not set. {one.metadata['meaning']}")
    return {}


def database_options(url: str, max_connections: int) -> dict[str, Any]:
    """Django's `DATABASES` entry for a Postgres URL, with a connection pool per process."""
    parts = urlsplit(url)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname,
        "PORT": str(parts.port or 5432),
        "OPTIONS": {"pool": {"min_size": 1, "max_size": max_connections, "timeout": 10.0}},
    }
