"""The worker's settings: typed, frozen, read once from the environment, loud.

`read(environ)` collects every mistake, so that one start names all of them, each with its remedy.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from scheduler_worker.engine.settings import EngineSettings

PREFIX: Final = "TIDEGATE_"
SLUG: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")
DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
ATTENTION_BACKENDS: Final = ("auto", "sdpa", "flashinfer")
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")


class SettingsError(RuntimeError):
    """The environment cannot be used; the message names every wrong setting and how to mend it."""


def _text(value: str) -> str:
    return value


def _slug(value: str) -> str:
    if not SLUG.match(value):
        raise ValueError("use lower-case letters, digits and -, at most 63, starting with a letter or digit")
    return value


def _redis_url(value: str) -> str:
    url = urlsplit(value)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise ValueError("use redis://:password@host:port/0")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"use one of {', '.join(choices)}")

    return parse


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise ValueError(f"use a whole number from {least} to {most}")
        return int(value)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:
            raise ValueError(f"use a number from {least:g} to {most:g}")
        return number

    return parse


def _setting(parse: Callable[[str], Any], meaning: str, **default: Any) -> Any:
    return field(metadata={"parse": parse, "meaning": meaning}, **default)


def _own_name() -> str:
    host = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower()).strip("-")
    return f"{host[:40] or 'worker'}-{os.getpid()}"


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Everything that differs between two workers. `variable(name)` is a field's name in the environment."""

    redis_url: str = _setting(_redis_url, "Redis or Valkey: redis://:password@host:port/0")
    model: str = _setting(_text, "Directory or hub id of the model")
    pool: str = _setting(_slug, "The pool's name: a model and its workers", default="default")
    worker_id: str = _setting(
        _slug, "Names this worker; unique among those that run", default_factory=_own_name
    )
    device: str = _setting(_text, "cpu, cuda or cuda:N; auto is CUDA when there is one", default="auto")
    dtype: str = _setting(_one_of(*DTYPES), f"Of weights and cache: {', '.join(DTYPES)}", default="auto")
    num_slots: int = _setting(_whole_number(1, 65_536), "Sequences in the running batch, at most", default=32)
    max_model_len: int | None = _setting(
        _whole_number(1, 100_000_000),
        "Longest sequence, prompt and answer; empty: the model's own limit",
        default=None,
    )
    kv_bytes: int | None = _setting(
        _whole_number(1, 1 << 50), "Size of the KV cache; empty: by TIDEGATE_KV_FRACTION", default=None
    )
    kv_fraction: float | None = _setting(
        _number(0.01, 0.99), "Share of the memory left by the weights for the KV cache", default=None
    )
    block_size: int = _setting(_whole_number(1, 1024), "Tokens of one KV block", default=16)
    swap_bytes: int = _setting(
        _whole_number(0, 1 << 50),
        "Memory for the KV checkpoints of parked sequences; 0 recomputes them",
        default=1 << 29,
    )
    checkpoint_dir: str | None = _setting(
        _text, "Keep KV checkpoints as files in this folder; empty: in memory", default=None
    )
    revision: str | None = _setting(_text, "Pins the revision of a hub id", default=None)
    threads: int | None = _setting(
        _whole_number(1, 4096), "CPU threads of the model; empty: all cores but one, of two both", default=None
    )
    attention: str = _setting(
        _one_of(*ATTENTION_BACKENDS),
        f"Attention kernels: {', '.join(ATTENTION_BACKENDS)}",
        default="auto",
    )
    cpu_tdp_w: float = _setting(
        _number(1, 10_000), "Power of the busy CPU; energy on a CPU is estimated from it", default=65.0
    )
    log_level: str = _setting(_one_of(*LOG_LEVELS), f"One of {', '.join(LOG_LEVELS)}", default="INFO")

    def engine(self) -> EngineSettings:
        """What the engine is loaded with. Imported here: it loads torch."""
        from scheduler_worker.engine.settings import EngineSettings

        return EngineSettings(
            model=self.model,
            device=self.device,
            dtype=self.dtype,  # type: ignore[arg-type]
            num_slots=self.num_slots,
            max_model_len=self.max_model_len,
            kv_bytes=self.kv_bytes,
            kv_fraction=self.kv_fraction,
            block_size=self.block_size,
            swap_bytes=self.swap_bytes,
            checkpoint_dir=self.checkpoint_dir,
            revision=self.revision,
            threads=self.threads,
            attention_backend=self.attention,  # type: ignore[arg-type]
        )


def variable(name: str) -> str:
    """The environment variable of a field of `WorkerSettings`."""
    return PREFIX + name.upper()


def read(environ: Mapping[str, str]) -> WorkerSettings:
    """The settings of an environment; raises `SettingsError` with every mistake and its remedy."""
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for one in fields(WorkerSettings):
        try:
            values.update(_read_one(one, environ))
        except ValueError as error:
            mistakes.append(f"{variable(one.name)}: {error}.")
    if mistakes:
        raise SettingsError(
            "\n  ".join(["The settings cannot be used (docs/settings.md has the table):", *mistakes])
        )
    return WorkerSettings(**values)


def _read_one(one: Field[Any], environ: Mapping[str, str]) -> dict[str, Any]:
    value = environ.get(variable(one.name), "")
    if value:
        return {one.name: one.metadata["parse"](value)}
    if one.default is MISSING and one.default_factory is MISSING:
        raise ValueError(f"it is not set. {one.metadata['meaning']}")
    return {}
