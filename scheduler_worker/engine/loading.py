"""From a path or a hub id to an unmodified transformers model on its device."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from scheduler_worker.engine.attention.ahead import compile_attention_ahead
from scheduler_worker.engine.errors import ModelNotSupported, SettingsError
from scheduler_worker.engine.settings import EngineSettings

_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode and what the engine needs to know about it."""

    model: PreTrainedModel
    name: str
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_position: int


def load_model(settings: EngineSettings) -> LoadedModel:
    """Load the weights onto the device; raises `SettingsError` or `ModelNotSupported`."""
    device = resolve_device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or default_threads())
    dtype = resolve_dtype(settings.dtype, device)
    if settings.attention_backend != "sdpa":
        _compile_attention_ahead(settings, dtype, device)
    return describe(_from_pretrained(settings, dtype).to(device), settings.model)


def describe(model: PreTrainedModel, name: str) -> LoadedModel:
    """What the engine needs to know about a model already in memory; switches it to evaluation mode."""
    model.eval()
    text_config = model.config.get_text_config()
    return LoadedModel(
        model=model,
        name=name,
        eos_token_ids=eos_token_ids(model),
        vocab_size=int(text_config.vocab_size),
        max_position=_max_position(model, name),
    )


def _from_pretrained(settings: EngineSettings, dtype: torch.dtype) -> PreTrainedModel:
    path, arguments = _source(settings)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=settings.trust_remote_code, **arguments
        )
    except (OSError, KeyError, ValueError, ImportError) as error:
        raise ModelNotSupported(settings.model, f"it could not be loaded: {error}") from error


def _compile_attention_ahead(settings: EngineSettings, dtype: torch.dtype, device: torch.device) -> None:
    path, arguments = _source(settings)
    if device.type != "cuda" or "gguf_file" in arguments:
        return
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code, **arguments)
    except (OSError, KeyError, ValueError, ImportError):
        return  # whoever loads the model says what is wrong
    compile_attention_ahead(config, dtype, device)


def _source(settings: EngineSettings) -> tuple[str, dict[str, Any]]:
    path = Path(settings.model).expanduser()
    if path.suffix == ".gguf":
        _require_exists(path, settings.model)
        return str(path.parent), {"gguf_file": path.name, "local_files_only": True}
    if path.is_dir():
        return str(path), {"local_files_only": True}
    if path.is_absolute() or settings.model.startswith((".", "~")):
        _require_exists(path, settings.model)
    return settings.model, {"revision": settings.revision}


def _require_exists(path: Path, model: str) -> None:
    if not path.exists():
        raise SettingsError(f"engine setting model is {model!r}; there is no such file or folder")


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one. Raises `SettingsError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"engine setting device is {name!r}; it must be auto, cpu or cuda[:N]") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"engine setting device is {name!r}; it must be auto, cpu or cuda[:N]")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"engine setting device is {name!r}; torch sees no CUDA device here")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and KV cache."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return faster_cpu_dtype()


def faster_cpu_dtype() -> torch.dtype:
    """bfloat16 if this CPU would serve a typical request faster with it than with float32.

    Support flags do not tell: emulated bfloat16 prefills 25 times slower, while half the bytes make decoding
    faster even where its arithmetic is slower. The request has 128 prompt tokens and 40 output tokens,
    decoded 8 at a time.
    """
    return min((torch.float32, torch.bfloat16), key=_typical_request_s)


@torch.inference_mode()
def _typical_request_s(dtype: torch.dtype) -> float:
    """Seconds per million weights: one prefill, limited by arithmetic, and 5 decode steps, by memory."""
    prefill_s = _matmul_s(dtype, num_rows=128, width=1536) / (768 * 1536)
    decode_s = _matmul_s(dtype, num_rows=8, width=24576) / (768 * 24576)
    return 1e6 * (prefill_s + 40 / 8 * decode_s)


def _matmul_s(dtype: torch.dtype, num_rows: int, width: int) -> float:
    """Best of a few `[num_rows, 768] × [768, width]` products, in seconds."""
    weight = torch.ones(width, 768, dtype=dtype)
    rows = torch.ones(num_rows, 768, dtype=dtype)
    return min(_timed(lambda: torch.nn.functional.linear(rows, weight)) for _ in range(4))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def default_threads() -> int:
    """All cores but one, which the scheduler's own work and the gateway need. Of two cores both: 24 streams through
    the whole demo got 1.45 times the tokens of one thread."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if available <= 2 else available - 1


def eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """The ids that end a sequence, from the generation config and the model's."""
    found: set[int] = set()
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        value = getattr(config, "eos_token_id", None)
        found.update(value if isinstance(value, Iterable) else () if value is None else (value,))
    return frozenset(int(token_id) for token_id in found)


def _max_position(model: PreTrainedModel, name: str) -> int:
    """The longest context whose tokens do not depend on what else is in the batch.

    Dynamic and long rotary scaling pick their frequencies by the longest position in the forward pass; up to
    the original length they never switch.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        raise ModelNotSupported(name, "its config has no max_position_embeddings")
    rope = getattr(config, "rope_parameters", None) or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in ("dynamic", "longrope"):
            original = part.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limit = min(limit, original or limit)
    return int(limit)


def fingerprint(model: PreTrainedModel) -> str:
    """A digest of architecture and a sample of the weights: a KV checkpoint fits only the model it came
    from."""
    digest = blake2b(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode(), digest_size=16)
    for name, parameter in model.named_parameters():
        sample = parameter.detach().flatten()[:64].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()
