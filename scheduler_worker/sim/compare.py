"""Several policies or schedulers on one workload, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final, TextIO

from scheduler_worker.core.plan import Capacity
from scheduler_worker.core.policy import Policy
from scheduler_worker.core.scheduler import Scheduler, SchedulerVerbs
from scheduler_worker.sim.admission import SimulatedAdmission
from scheduler_worker.sim.baselines import BaselineOptions, BaselineScheduler, StaticScheduler
from scheduler_worker.sim.cost import StepCost
from scheduler_worker.sim.report import Figures, report
from scheduler_worker.sim.run import History, Options, Progress, Simulation
from scheduler_worker.sim.trace import Request
from scheduler_worker.sim.workload import assign_classes, at_rate, duration_s, superposed

SCHEDULERS: Final = ("tidegate", "fcfs", "static", "priority", "vtc", "lcf")
BAR_WIDTH: Final = 30


class UsageError(ValueError):
    """Options that do not fit each other or the trace."""


@dataclass(frozen=True)
class Setup:
    """Everything one comparison needs. `kv_tokens` is the size of a worker's KV cache; `decodes_between` is a
    baseline's, see `BaselineOptions`."""

    trace: Sequence[Request]
    policies: dict[str, Policy]
    schedulers: tuple[str, ...]
    cost: StepCost
    num_workers: int = 1
    num_slots: int = 64
    kv_tokens: int = 1_000_000
    block_size: int = 16
    load: float | None = None
    superpose: bool = False
    known_lengths: bool = False
    max_tokens: int = 1024
    queue_bound: int | None = None
    displace: bool = False
    in_flight: int = 1
    split: str = ""
    admission: bool = True
    seed: int = 0
    decodes_between: int = 0

    def __post_init__(self) -> None:
        baselines = [name for name in self.schedulers if name != "tidegate"]
        if self.queue_bound is not None and self.num_workers > 1:
            raise UsageError("--queue-bound needs --workers 1: each mirror would refuse on its own")
        if baselines and self.in_flight > 1:
            raise UsageError(f"{baselines[0]} keeps one step in flight; use --in-flight 1")
        if self.displace and self.queue_bound is None:
            raise UsageError("--displace needs --queue-bound")
        if self.superpose and self.load is None:
            raise UsageError("--superpose needs --load")
        if self.load is not None and not 0 < self.load <= 100:
            raise UsageError(f"--load is {self.load:g}; a multiple above 0, at most 100, is needed")


@dataclass
class Runs:
    """Figures, histories and policies by the run's name."""

    figures: dict[str, Figures] = field(default_factory=dict)
    histories: dict[str, History] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)


class Comparison:
    """Runs every scheduler under every policy on the same requests."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def run(self, progress: TextIO | None = None) -> Runs:
        """All runs in the order they were asked for; nothing is reported before all have ended."""
        setup, runs = self._setup, Runs()
        requests = workload(setup)
        for policy_name, policy in setup.policies.items():
            for scheduler in setup.schedulers:
                name = _run_name(setup, policy_name, scheduler)
                history = simulate(setup, scheduler, policy, requests, bar(name, progress))
                runs.figures[name] = report(history, policy, setup.num_workers)
                runs.histories[name], runs.policies[name] = history, policy
        return runs


def workload(setup: Setup) -> list[Request]:
    """The trace with classes, at the load that was asked for."""
    policy = next(iter(setup.policies.values()))
    requests = assign_classes(setup.trace, _shares(setup, policy), setup.seed)
    _check_classes(requests, setup.policies)
    if setup.load is None:
        return requests
    rate_rps = setup.load * saturated_rps(setup, requests)
    return superposed(requests, rate_rps, setup.seed) if setup.superpose else at_rate(requests, rate_rps)


def saturated_rps(setup: Setup, requests: Sequence[Request]) -> float:
    """Requests per second that FCFS completes when the whole sample waits from the start."""
    burst = [replace(one, arrival_s=0.0) for one in requests]
    alone = replace(setup, num_workers=1, queue_bound=None, displace=False, in_flight=1)
    history = simulate(alone, "fcfs", next(iter(setup.policies.values())), burst)
    return len(requests) / history.makespan_s * setup.num_workers


def simulate(
    setup: Setup,
    scheduler: str,
    policy: Policy,
    requests: Sequence[Request],
    progress: Progress | None = None,
) -> History:
    """One run."""
    capacity = _capacity(setup)
    schedulers = [_make(setup, scheduler, policy, capacity) for _ in range(setup.num_workers)]
    own = [one for one in schedulers if isinstance(one, Scheduler)]
    admission = SimulatedAdmission(policy, own, capacity) if own and setup.admission else None
    options = Options(
        in_flight=setup.in_flight,
        known_lengths=setup.known_lengths,
        max_tokens=setup.max_tokens,
        seed=setup.seed,
    )
    return Simulation(requests, schedulers, [setup.cost] * setup.num_workers, options, admission).run(
        progress
    )


def _capacity(setup: Setup) -> Capacity:
    return Capacity(
        num_slots=setup.num_slots,
        num_blocks=setup.kv_tokens // setup.block_size,
        block_size=setup.block_size,
        max_model_len=max(1 << 20, setup.kv_tokens),
        max_in_flight_steps=setup.in_flight,
        num_swap_blocks=4 * setup.kv_tokens // setup.block_size,
    )


def _make(setup: Setup, name: str, policy: Policy, capacity: Capacity) -> SchedulerVerbs:
    if name == "tidegate":
        return Scheduler(policy, capacity)
    options = BaselineOptions(
        known_lengths=setup.known_lengths,
        queue_bound=setup.queue_bound,
        displace=setup.displace,
        max_num_batched_tokens=policy.step.max_num_batched_tokens,
        max_chunk_tokens=policy.step.max_chunk_tokens,
        decodes_between=setup.decodes_between,
    )
    make = StaticScheduler if name == "static" else BaselineScheduler
    return make(name, policy, capacity, options)


def _shares(setup: Setup, policy: Policy) -> list[tuple[str, float]]:
    ranked = sorted(policy.classes, key=lambda one: one.rank)
    if not setup.split:
        return [((policy.default_class or policy.least_urgent().id), 1.0)]
    try:
        shares = [float(part) for part in setup.split.split("/")]
    except ValueError:
        shares = []
    if len(shares) != len(ranked) or min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(
            f"--split is {setup.split!r}; {len(ranked)} shares such as 20/30/50 are needed, in rank order"
        )
    return [(one.id, share) for one, share in zip(ranked, shares, strict=True)]


def _check_classes(requests: Sequence[Request], policies: dict[str, Policy]) -> None:
    for name, policy in policies.items():
        for one in dict.fromkeys(request.class_id for request in requests):
            try:
                policy.find(one)
            except KeyError:
                known = ", ".join(each.id for each in policy.classes)
                raise UsageError(f"the trace has class {one!r}, the policy {name} has {known}") from None


def _run_name(setup: Setup, policy: str, scheduler: str) -> str:
    if len(setup.policies) == 1:
        return scheduler
    return policy if len(setup.schedulers) == 1 else f"{policy} · {scheduler}"


def bar(name: str, out: TextIO | None) -> Progress | None:
    """Draws how far a run has come; None without a terminal to draw on."""
    if out is None:
        return None
    started_at = monotonic()

    def draw(done: int, total: int) -> None:
        filled = BAR_WIDTH * done // max(1, total)
        bar = "█" * filled + "·" * (BAR_WIDTH - filled)
        out.write(f"\r{name:12.12} {bar} {done:,} of {total:,} requests, {monotonic() - started_at:.0f} s ")
        out.write("\n" if done == total else "")
        out.flush()

    return draw


__all__ = ["Comparison", "Runs", "Setup", "UsageError", "bar", "duration_s", "saturated_rps", "simulate", "workload"]
