"""Our engine beside transformers' own means on a CPU: `python -m bench.engine_cpu --model DIR`.

One process, one model, one workload, all on the same threads, in turn for some rounds; judged by the process's CPU
time, which other work on the machine changes least. `generate()` runs static batches of as many requests as there are
slots, each until its longest answer is done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.engine import Loop, Request, Workload
from bench.engine_peers import continuous_tokens_per_s, generate_tokens_per_s
from scheduler_worker.engine.executor import TorchExecutor
from scheduler_worker.engine.loading import describe
from scheduler_worker.engine.settings import EngineSettings

TOKEN_BUDGET = 512


class Taken(NamedTuple):
    """What one engine took for the workload."""

    cpu_s: float
    wall_s: float


def ours(model: PreTrainedModel, requests: list[Request], num_slots: int) -> None:
    """The scheduler and the paged engine."""
    settings = EngineSettings(model="bench", num_slots=num_slots, max_model_len=1024, kv_bytes=1 << 29)
    executor = TorchExecutor(describe(model, "bench"), settings)
    loop = Loop(executor, TOKEN_BUDGET)
    loop.add(requests)
    loop.run()
    executor.close()  # the model is as it was


def static(model: PreTrainedModel, requests: list[Request], num_slots: int) -> None:
    """`generate()` on one batch after the other."""
    model.set_attn_implementation("sdpa")
    for first in range(0, len(requests), num_slots):
        batch = [(one.token_ids, one.max_tokens) for one in requests[first : first + num_slots]]
        generate_tokens_per_s(model, batch, 0, warm=False)


def continuous(model: PreTrainedModel, requests: list[Request], num_slots: int) -> None:
    """transformers' continuous batching."""
    model.set_attn_implementation("sdpa")
    asked = [(one.token_ids, one.max_tokens) for one in requests]
    continuous_tokens_per_s(model, asked, num_slots, warm=False)


ENGINES: dict[str, Callable[[PreTrainedModel, list[Request], int], None]] = {
    "tidegate": ours,
    "transformers: continuous batching": continuous,
    "generate(): static batches": static,
}


def timed(call: Callable[[], None]) -> Taken:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Taken(time.process_time() - cpu, time.perf_counter() - wall)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine_cpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a model's folder")
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    requests = Workload(options.requests, options.slots).requests(model.config.vocab_size)
    num_tokens = sum(one.max_tokens for one in requests)
    taken: dict[str, list[Taken]] = {name: [] for name in ENGINES}
    for _ in range(options.rounds):
        for name, run in ENGINES.items():
            taken[name].append(timed(partial(run, model, requests, options.slots)))
            print(f"{name}: {taken[name][-1].cpu_s:.1f} s of CPU, {taken[name][-1].wall_s:.1f} s", flush=True)
    rows = []
    for name, found in taken.items():
        ratios = [one.cpu_s / own.cpu_s for one, own in zip(found, taken["tidegate"], strict=True)]
        cpu_s = statistics.median(one.cpu_s for one in found)
        rows.append({"engine": name, "cpu_s": cpu_s, "tokens": num_tokens, "times_ours": ratios})
        print(f"{name:36}{cpu_s:8.1f} s of CPU, {statistics.median(ratios):.2f} times ours ({ratios})")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
