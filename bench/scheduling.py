"""The scheduling figures of docs/scheduling.md, on public traces, by one command each.

    python -m bench.scheduling vtc   --traces DIR                       # VTC's arena trace, all schedulers
    python -m bench.scheduling azure --traces DIR --load 0.85 --slots 64
    python -m bench.scheduling azure --traces DIR --load 1.5 --slots 64 --bounds 4 8 16 32 64
    python -m bench.scheduling azure --traces DIR --load 1.5 --schedulers priority --bounds 4 8 16 32 64
    python -m bench.scheduling oracle --traces DIR --load 1.5           # refusals against an oracle's
    python -m bench.scheduling ceiling --traces DIR --load 1.5          # what a worker that is never idle could serve
    python -m bench.scheduling memory --traces DIR                      # tokens computed again for want of memory
    python -m bench.scheduling limit                                    # how steady the batch limit is
    python -m bench.scheduling limit --burst 600                        # and what a burst does, nobody refused
    python -m bench.scheduling limit --low-from 150                     # and how it comes back with loose objectives
    python -m bench.scheduling cost                                     # the scheduler's own time per step

DIR holds `vtc_arena/` and `azure2023/`. Medians over seeds with their range; `--json` writes every run as it ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from math import inf
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from scheduler_worker.core.admission import Ask
from scheduler_worker.core.plan import Capacity, Event, EventKind
from scheduler_worker.core.policy import (
    ClassPolicy,
    Memory,
    Policy,
    Slo,
    Starvation,
    Step,
    check_policy,
    default_policy,
)
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.sim.admission import SimulatedAdmission
from scheduler_worker.sim.compare import Setup, bar, saturated_rps, simulate
from scheduler_worker.sim.cost import H200_1B, VTC_ARENA, perturbed
from scheduler_worker.sim.report import nearest_rank, report
from scheduler_worker.sim.run import History, Options, Progress, Simulation
from scheduler_worker.sim.trace import Request, read_trace
from scheduler_worker.sim.workload import assign_classes, superposed

COMPARED = {"vtc": ("fcfs", "static", "priority", "vtc", "lcf", "tidegate"), "azure": ("tidegate", "priority")}
SMALL_CLIENT = 40
PERTURBED_BY = 0.016
SPLIT = (("high", 20.0), ("medium", 30.0), ("low", 50.0))
CLASSES, SHARES = [one for one, _ in SPLIT], [share for _, share in SPLIT]
AZURE = ("azure", "oracle", "ceiling")
Row = dict[str, Any]


def main() -> None:
    """Run one comparison, print its table, write its rows."""
    options = _options()
    rows: list[Row] = []
    for row in options.rows(options):
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scheduling", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, rows in COMMANDS.items():
        command = commands.add_parser(name)
        command.set_defaults(rows=rows)
        command.add_argument("--json", type=Path)
        command.add_argument("--seeds", type=int, default=8 if name == "vtc" else 3)
        if name in ("vtc", "memory", *AZURE):
            command.add_argument("--traces", type=Path, required=True)
        if name in AZURE:
            command.add_argument("--load", type=float, default=0.85)
            command.add_argument("--slots", type=int, default=64)
            command.add_argument("--requests", type=int, help="only so many of the trace, from its start")
            command.add_argument("--bounds", type=int, nargs="*", default=[], help="also bounded priority")
            command.add_argument("--policy", type=Path, help="a policy document in place of the default")
        if name in ("vtc", "azure"):
            known = COMPARED[name]
            command.add_argument("--schedulers", nargs="+", choices=known, default=known, help="only these")
        if name == "vtc":
            text = "baselines: prompts in steps of their own after so many of decodes; the artifact: 10"
            command.add_argument("--decodes-between", type=int, default=0, help=text)
        if name == "limit":
            command.add_argument("--burst", type=int, default=0, help="so many more at 150 s; refuses nobody")
            command.add_argument("--low-from", type=float, default=inf, help="from then on all requests are of low")
    return parser.parse_args()


def _bar(name: str, seed: int) -> Progress | None:
    """How far a run has come, where somebody looks."""
    return bar(f"{name} {seed}", sys.stderr) if sys.stderr.isatty() else None


# VTC's arena trace


def arena_policy(memory: Memory) -> Policy:
    """One class whose objectives never act: tenants share, nothing is refused, no tier."""
    slo = Slo(ttft_s=600.0, tpot_s=10.0)
    return Policy(
        classes=(ClassPolicy(id="all", rank=0, weight=1, slo=slo, max_wait_s=600.0, queue_limit=100_000),),
        step=Step(max_num_batched_tokens=4096, max_chunk_tokens=4096),
        starvation=Starvation(enabled=False),
        memory=memory,
    )


def _arena(options: argparse.Namespace) -> list[Request]:
    trace = read_trace(options.traces / "vtc_arena" / "arena_real_27clients_600s.csv")
    return assign_classes(trace, [("all", 1.0)], 0)


def _vtc_rows(options: argparse.Namespace) -> Iterator[Row]:
    trace, policy = _arena(options), arena_policy(Memory(max_bypasses=0))
    for seed in range(options.seeds):
        setup = Setup(
            trace=trace, policies={"arena": policy}, schedulers=(), cost=perturbed(VTC_ARENA, PERTURBED_BY, seed),
            num_slots=256, kv_tokens=10_000, block_size=1, known_lengths=True, admission=False,
            decodes_between=options.decodes_between,
        )  # fmt: skip
        for name in options.schedulers:
            history = simulate(setup, name, policy, trace, _bar(name, seed))
            yield {"run": name, "seed": seed, **_vtc_figures(history, policy)}


def _vtc_figures(history: History, policy: Policy) -> Row:
    num_of = Counter(one.request.tenant for one in history.outcomes)
    small = [one for one in history.outcomes if num_of[one.request.tenant] < SMALL_CLIENT]
    ttfts = sorted(one.ttft_s for one in small if one.ttft_s is not None)
    figures = report(history, policy, 1)
    return {
        "tokens_per_s": figures["tokens_per_s"],
        "small_p50_s": nearest_rank(ttfts, 0.50),
        "small_p99_s": nearest_rank(ttfts, 0.99),
        "recomputed": figures["recomputed_share"],
    }


def _memory_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Memory preemption: the arena trace with lengths unknown, by the share of growth that is reserved."""
    trace = _arena(options)
    for share in (1.0, 0.85, 0.7, 0.5, 0.0):
        policy = arena_policy(memory=Memory(reserve_growth=share, swap=False))
        for seed in range(options.seeds):
            setup = Setup(
                trace=trace, policies={"arena": policy}, schedulers=(), cost=perturbed(VTC_ARENA, PERTURBED_BY, seed),
                num_slots=256, kv_tokens=10_000, admission=False,
            )  # fmt: skip
            history = simulate(setup, "tidegate", policy, trace, _bar(f"{share:g}", seed))
            yield {"run": f"reserve {share:g}", "seed": seed, **_vtc_figures(history, policy)}


# The Azure conversation trace


def _policy(options: argparse.Namespace) -> Policy:
    """The policy as it is shipped, or the document that was given."""
    if options.policy is None:
        return default_policy()
    return check_policy(json.loads(options.policy.read_text(encoding="utf-8")))


def _azure_rows(options: argparse.Namespace) -> Iterator[Row]:
    policy = _policy(options)
    setup = _azure_setup(options, policy)
    for seed, requests in _azure_requests(options, policy):
        run = partial(_azure_row, requests=requests, policy=policy, seed=seed)
        for name in options.schedulers:
            yield run(name, setup, name)
        for bound in options.bounds:
            bounded = replace(setup, queue_bound=bound)
            yield run(f"priority, bound {bound}", bounded, "priority")
            yield run(f"priority, bound {bound}, displacing", replace(bounded, displace=True), "priority")


def _azure_setup(options: argparse.Namespace, policy: Policy) -> Setup:
    trace = read_trace(options.traces / "azure2023" / "AzureLLMInferenceTrace_conv.csv")[: options.requests]
    return Setup(
        trace=trace, policies={"azure": policy}, schedulers=(), cost=H200_1B, num_slots=options.slots
    )


def _azure_requests(options: argparse.Namespace, policy: Policy) -> Iterator[tuple[int, list[Request]]]:
    """A workload for each seed, at the load asked for."""
    setup = _azure_setup(options, policy)
    rate_rps = options.load * saturated_rps(setup, assign_classes(setup.trace, [("low", 1.0)], 0))
    for seed in range(options.seeds):
        yield seed, superposed(assign_classes(setup.trace, SPLIT, seed), rate_rps, seed)


def _azure_row(
    label: str, setup: Setup, scheduler: str, *, requests: Sequence[Request], policy: Policy, seed: int
) -> Row:
    figures = report(simulate(setup, scheduler, policy, requests, _bar(label, seed)), policy, 1)
    row: Row = {"run": label, "seed": seed}
    for class_id, one in figures["classes"].items():
        row[f"{class_id}_ttft_p99_s"] = one["ttft_s"]["p99"]
        row[f"{class_id}_refused"] = one["rejected"] / one["requests"]
        row[f"{class_id}_attained"] = one["slo_attainment"]
    for name in (
        "goodput_rps",
        "offered_rps",
        "max_wait_s",
        "recomputed_share",
        "bounds_missed",
        "preemptions",
    ):
        row[name] = figures[name]
    return row


class Oracle(SimulatedAdmission):
    """Admission that knows how long each answer will become."""

    lengths: Sequence[int] = ()

    def ask(self, header: SequenceHeader, class_id: str) -> Ask:
        """The truth in place of the expectation."""
        return Ask(class_id, header.num_prompt_tokens, self.lengths[header.arrival_number - 1])


def _oracle_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Refusals at this load, and those of an admission that knows the output lengths."""
    policy, capacity = _policy(options), Capacity(options.slots, 62_500, 16, 1 << 20)
    for seed, requests in _azure_requests(options, policy):
        for kind in (SimulatedAdmission, Oracle):
            scheduler = Scheduler(policy, capacity)
            admission = kind(policy, [scheduler], capacity)
            if isinstance(admission, Oracle):
                admission.lengths = [one.num_output_tokens for one in requests]
            history = Simulation(requests, [scheduler], [H200_1B], Options(), admission).run()
            yield {
                "run": kind.__name__,
                "seed": seed,
                "refused": sum(one.refused for one in history.outcomes),
            }


def _ceiling_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Goodput if every slot always decoded, high and medium were all served, and low filled what is left."""
    for seed, requests in _azure_requests(options, _policy(options)):
        window_s, low = requests[-1].arrival_s, []
        taken_s, num_served = 0.0, 0
        for one in requests:
            if one.class_id == "low":
                low.append(_worker_s(one, options.slots))
            else:
                taken_s, num_served = taken_s + _worker_s(one, options.slots), num_served + 1
        left_s, shortest = window_s - taken_s, list(accumulate(sorted(low)))
        yield {
            "run": "ceiling",
            "seed": seed,
            "any_of_low_rps": (num_served + len(low) * min(1.0, left_s / sum(low))) / window_s,
            "shortest_of_low_rps": (num_served + bisect_right(shortest, left_s)) / window_s,
        }


def _worker_s(one: Request, num_slots: int) -> float:
    """The worker's time for a request: its prompt, and its share of full decode steps."""
    context = one.num_prompt_tokens + one.num_output_tokens / 2
    row_s = H200_1B.base_s / num_slots + H200_1B.row_s + context * H200_1B.kv_token_s
    return one.num_prompt_tokens * H200_1B.prefill_token_s + one.num_output_tokens * row_s


# The batch limit


MIXED = (50, 2000), (20, 400)
DECODES = (20, 60), (100, 400)
"""Least and most prompt tokens, least and most answer tokens: prompts fill the steps, or decodes alone."""
LIMIT_LOADS = ((4.0, 17.0, MIXED), (4.0, 26.0, MIXED), (8.0, 7.0, MIXED), (8.0, 13.0, MIXED), (8.0, 40.0, DECODES))
Sizes = tuple[tuple[int, int], tuple[int, int]]


def _limit_rows(options: argparse.Namespace) -> Iterator[Row]:
    """Constant Poisson load for 600 s on a device that is slow enough for the limit to act; the last 100 s count."""
    for slower, rate_rps, sizes in LIMIT_LOADS:
        for seed in range(options.seeds):
            requests = _limit_requests(rate_rps, sizes, seed, options.burst, options.low_from)
            changes = _limit_changes(slower, requests, options.burst == 0, _bar(f"{slower:g}x {rate_rps:g}/s", seed))
            limits = [256, *(int(event.numbers["after"]) for event in changes)]
            late = [limit for limit, event in zip(limits[1:], changes, strict=True) if event.at >= 500.0]
            seen = [limits[len(changes) - len(late)], *late]
            yield {
                "run": f"{slower:g} times as slow, {rate_rps:g} requests/s{', short prompts' * (sizes is DECODES)}",
                "seed": seed,
                "lowest": min(limits),
                "limit": seen[-1],
                "range": max(seen) - min(seen),
                "reversals": _reversals(seen),
            }


def _limit_requests(rate_rps: float, sizes: Sizes, seed: int, num_more: int, low_from_s: float) -> list[Request]:
    """600 s of Poisson arrivals; a burst of `num_more` comes on top."""
    draw, at, times = Random(f"poisson-{seed}"), 0.0, [150.0] * num_more
    while (at := at + draw.expovariate(rate_rps)) < 600.0:
        times.append(at)
    requests = [
        Request(at, draw.randint(*sizes[0]), draw.randint(*sizes[1]), draw.choices(CLASSES, SHARES)[0])
        for at in sorted(times)
    ]
    return [replace(one, class_id="low") if one.arrival_s >= low_from_s else one for one in requests]


def _limit_changes(
    slower: float, requests: list[Request], refuses: bool, progress: Progress | None
) -> list[Event]:
    """Moves of the limit in 600 s."""
    setup = Setup(
        trace=requests, policies={}, schedulers=(), cost=H200_1B.scaled(slower), num_slots=256, admission=refuses
    )  # fmt: skip
    history = simulate(setup, "tidegate", default_policy(), requests, progress)
    moves = [event for event in history.events if event.kind is EventKind.BATCH_LIMIT_CHANGED]
    return [event for event in moves if event.at < 600.0]


def _reversals(limits: Sequence[int]) -> int:
    moves = [after - before for before, after in pairwise(limits)]
    return sum(one * other < 0 for one, other in pairwise(moves))


# The scheduler's own time


def _cost_rows(options: argparse.Namespace) -> Iterator[Row]:
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            out = Path(folder, "core.json")
            command = [sys.executable, "-m", "bench.core", "--json", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
        for row in rows:
            figures = {"plan_and_apply_us": row["plan_and_apply"], "all_verbs_us": row["all_verbs"]}
            yield {"run": f"{row['waiting']:,.0f} waiting", "seed": seed, **figures}


# The table


def _table(rows: Sequence[Row]) -> str:
    """Median (least to most) of every figure, a line a run."""
    names = [name for name in rows[0] if name not in ("run", "seed")]
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run]
        lines.append(run)
        lines += [
            f"  {name:20} {_spread([row[name] for row in mine if row[name] is not None])}" for name in names
        ]
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):10.4g}  ({min(values):.4g} to {max(values):.4g})"


COMMANDS = {
    "vtc": _vtc_rows,
    "memory": _memory_rows,
    "azure": _azure_rows,
    "oracle": _oracle_rows,
    "ceiling": _ceiling_rows,
    "limit": _limit_rows,
    "cost": _cost_rows,
}

if __name__ == "__main__":
    main()
