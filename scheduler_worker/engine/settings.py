"""How an engine is set up: typed, frozen, checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scheduler_worker.engine.errors import SettingsError

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
BackendName = Literal["auto", "sdpa", "flashinfer"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything `load_executor` needs.

    model: a local directory (safetensors), a `.gguf` file, or a hub id; `revision` pins a hub id.
    dtype: `auto` is bfloat16 on CUDA; on a CPU bfloat16 where a short timing shows it to be faster than
        float32.
    device: `auto` is CUDA when there is one, else the CPU.
    num_slots: rows that can be in the running batch.
    block_size: tokens per KV block.
    max_model_len: longest sequence, prompt and output together; the model's own limit when None.
    num_blocks, kv_bytes, kv_fraction: the KV cache's size, the first that is set wins; `kv_fraction` is a
        share of the memory that is free once the weights are loaded.
    swap_bytes: host memory for KV checkpoints of preempted sequences; 0 switches swapping off.
    checkpoint_dir: keep KV checkpoints as safetensors files in this folder instead of in memory, so that they
        outlive the process. `swap_bytes` bounds them as well.
    attention_backend: `auto` is flashinfer where it can run (CUDA, half precision, the extra `gpu`), else
        sdpa, which runs anywhere.
    cuda_graphs: capture steps as CUDA graphs at start, with flashinfer only.
    compile_model: compile the captured model: fewer, larger kernels.
    fuse_linears: on CUDA, compute linear layers that read the same input by one product.
    pack_linears: on a CPU, keep a second copy of the linear layers' weights, arranged for its products.
    max_in_flight_steps: steps that may be launched and not yet collected; 1 on a CPU and 2 on CUDA when None.
    threads: CPU threads of torch; all cores but one (of two both) when None.
    trust_remote_code: run model code that comes with the weights.
    self_check: at start, compare the paged attention with the model's own on a short prompt and refuse the
        model when they disagree.
    """

    model: str
    revision: str | None = None
    dtype: DtypeName = "auto"
    device: str = "auto"
    num_slots: int = 32
    block_size: int = 16
    max_model_len: int | None = None
    num_blocks: int | None = None
    kv_bytes: int | None = None
    kv_fraction: float | None = None
    swap_bytes: int = GIB // 2
    checkpoint_dir: str | None = None
    attention_backend: BackendName = "auto"
    cuda_graphs: bool = True
    compile_model: bool = True
    fuse_linears: bool = True
    pack_linears: bool = True
    max_in_flight_steps: int | None = None
    threads: int | None = None
    trust_remote_code: bool = False
    self_check: bool = True

    def __post_init__(self) -> None:
        for name in ("num_slots", "block_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("max_model_len", "num_blocks", "kv_bytes", "threads", "max_in_flight_steps"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1, or unset")
        fraction = self.kv_fraction
        _require("kv_fraction", fraction, fraction is None or 0.0 < fraction < 1.0, "between 0 and 1")
        _require("swap_bytes", self.swap_bytes, self.swap_bytes >= 0, "0 or more")


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise SettingsError(f"engine setting {name} is {value!r}; it must be {wanted}")
