"""`python -m scheduler_worker.sim`: what would this policy, or that scheduler, have done with this traffic?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from scheduler_worker.core.policy import InvalidPolicy, Policy, check_policy, default_policy
from scheduler_worker.sim.compare import SCHEDULERS, Comparison, Setup, UsageError
from scheduler_worker.sim.cost import MalformedCost, read_cost
from scheduler_worker.sim.plot import PlottingMissing, save_plot
from scheduler_worker.sim.report import table
from scheduler_worker.sim.run import SimulationStalled
from scheduler_worker.sim.trace import MalformedTrace, read_trace


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a scheduler stalled, 2 the input is wrong."""
    options = _parser().parse_args(arguments)
    try:
        comparison = Comparison(_setup(options))
        runs = comparison.run(progress=sys.stderr if sys.stderr.isatty() else None)
        if options.plot:
            save_plot(options.plot, runs.histories, runs.policies)
    except (MalformedTrace, MalformedCost, InvalidPolicy, UsageError, PlottingMissing, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SimulationStalled as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(runs.figures))
    if options.json:
        options.json.write_text(json.dumps(runs.figures, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scheduler_worker.sim", description=__doc__)
    add = parser.add_argument
    add(
        "--trace",
        type=Path,
        required=True,
        help="CSV of recorded traffic (see docs/scheduling.md for the formats)",
    )
    add(
        "--policy",
        type=Path,
        action="append",
        default=[],
        help="policy document (JSON); several: side by side",
    )
    add(
        "--scheduler",
        choices=SCHEDULERS,
        action="append",
        default=[],
        help="several: side by side (tidegate)",
    )
    add("--workers", type=_positive, default=1, help="workers that mirror one queue (1)")
    add("--slots", type=_positive, default=64, help="rows in a worker's batch (64)")
    add("--kv-tokens", type=_positive, default=1_000_000, help="tokens in a worker's KV cache (1,000,000)")
    add("--block-size", type=_positive, default=16, help="tokens in a block (16)")
    add(
        "--cost-model",
        default="h200-1b",
        help="h200-1b, vtc-arena, or a JSON file of coefficients in seconds",
    )
    add("--load", type=float, help="offered rate as a multiple of the sample's saturated FCFS rate")
    add(
        "--superpose",
        action="store_true",
        help="build the load from randomly offset copies, not by compressing time",
    )
    add("--known-lengths", action="store_true", help="the scheduler knows each output's length")
    add("--max-tokens", type=_positive, default=1024, help="max_tokens of requests of unknown length (1024)")
    add("--queue-bound", type=_positive, help="refuse beyond so many waiting (baselines)")
    add("--displace", action="store_true", help="…or throw out the least urgent instead (baselines)")
    add("--in-flight", type=int, choices=(1, 2), default=1, help="steps in flight (1)")
    add("--split", default="", help="shares of the classes, in rank order, for traces without them: 20/30/50")
    add("--no-admission", action="store_true", help="accept everything")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="write all figures")
    add("--plot", type=Path, help="write a picture: queue depth and TTFT over time")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return value


def _setup(options: argparse.Namespace) -> Setup:
    policies = {path.stem: _read_policy(path) for path in options.policy} or {"default": default_policy()}
    return Setup(
        trace=read_trace(options.trace),
        policies=policies,
        schedulers=tuple(options.scheduler) or ("tidegate",),
        cost=read_cost(options.cost_model),
        num_workers=options.workers,
        num_slots=options.slots,
        kv_tokens=options.kv_tokens,
        block_size=options.block_size,
        load=options.load,
        superpose=options.superpose,
        known_lengths=options.known_lengths,
        max_tokens=options.max_tokens,
        queue_bound=options.queue_bound,
        displace=options.displace,
        in_flight=options.in_flight,
        split=options.split,
        admission=not options.no_admission,
        seed=options.seed,
    )


def _read_policy(path: Path) -> Policy:
    try:
        return check_policy(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except InvalidPolicy as error:
        raise UsageError(f"{path}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
