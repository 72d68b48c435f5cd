"""What a step costs the scheduler itself: `python -m bench.core`.

256 sequences run, others wait over 300 tenants in three classes. Each step claims, plans, books and applies; answers
end and waiting sequences take their place. The same steps are repeated from the start several times, in CPU time of
this thread: of each step the least and the median over the repetitions count, and the table has the median over all
steps of either (`best` and `median`, in µs). `chunks` is what an executor pays that asks for the decoding rows one by
one. `--mean-output 2000` shows steps in which hardly anybody starts or ends, `--running 8 --waiting 0` a small
worker's, `--policy` the time of one `set_policy` instead. `--json` writes the figures.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from pathlib import Path
from random import Random
from time import thread_time

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import Capacity, RowResult
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.core.sequence import SequenceHeader
from scheduler_worker.sim.device import answer

CLASSES = ("high", "medium", "low")
STEP_BUDGET_US = 150.0


VERBS = ("claim", "plan", "begin", "chunks", "apply")
WARM_UP_STEPS = 300
Steps = list[tuple[float, ...]]


class Load:
    """A scheduler with a full batch and a long queue."""

    def __init__(
        self, num_running: int, num_waiting: int, num_tenants: int, mean_output: int, seed: int
    ) -> None:
        self._random = Random(seed)
        self._num_tenants, self._mean_output = num_tenants, mean_output
        figures = {"base_s": 0.004, "decode_row_s": 4e-6, "prefill_token_s": 6.5e-6, "num_observed": 1000.0}
        capacity = Capacity(num_running, num_running * 64, 16, 4096)
        self.scheduler = Scheduler(default_policy(), capacity, cost_model=CostModel(figures))
        self._ends: dict[str, int] = {}
        self._made: dict[str, int] = {}
        self._num_arrived = 0
        self.now = 0.0
        for _ in range(num_waiting + num_running):
            self.arrive()

    def arrive(self) -> None:
        """One more request."""
        self._num_arrived += 1
        seq_id = f"request-{self._num_arrived}"
        self._ends[seq_id] = 1 + int(self._random.expovariate(1 / self._mean_output))
        header = SequenceHeader(
            seq_id=seq_id,
            class_id=self._random.choices(CLASSES, (20, 30, 50))[0],
            tenant=f"tenant-{self._random.randrange(self._num_tenants)}",
            arrival_number=self._num_arrived,
            arrived_at=self.now,
            num_prompt_tokens=self._random.randint(32, 256),
            max_tokens=512,
        )
        self.scheduler.add(header, self.now)

    def step(self) -> tuple[float, ...]:
        """One step, then as many arrivals as there were ends. Returns the µs of each of `VERBS`."""
        began = thread_time()
        self.scheduler.claim(self.scheduler.claim_candidates(self.now), self.now)
        claimed = thread_time()
        plan = self.scheduler.plan_step(self.now)
        planned = thread_time()
        assert plan is not None
        self.scheduler.begin(plan)
        begun = thread_time()
        tuple(plan.chunks)
        seen = thread_time()
        result = answer(plan, self._ends_now, plan.predicted_s)
        self.now += plan.predicted_s
        before = thread_time()
        applied = self.scheduler.apply_result(result, self.now)
        after = thread_time()
        for _ in applied.finished:
            self.arrive()
        seconds = (claimed - began, planned - claimed, begun - planned, seen - begun, after - before)
        return tuple(one * 1e6 for one in seconds)

    def _ends_now(self, seq_id: str) -> bool:
        made = self._made[seq_id] = self._made.get(seq_id, 0) + 1
        return made >= self._ends[seq_id]


def pace_us() -> float:
    """What this machine takes at the moment to make a row's value 256 times: how to read the other figures."""
    began = thread_time()
    for number in range(2_560):
        RowResult("request", number)
    return (thread_time() - began) * 1e5


def measure(options: argparse.Namespace, num_waiting: int) -> Steps:
    """One run from the start: the times of each step after warming up."""
    load = _load(options, num_waiting)
    for _ in range(WARM_UP_STEPS):
        load.step()
    gc.collect()
    gc.freeze()
    steps = [load.step() for _ in range(options.steps)]
    gc.unfreeze()
    return steps


def _load(options: argparse.Namespace, num_waiting: int) -> Load:
    return Load(options.running, num_waiting, options.tenants, options.mean_output, 7)


def row_of(num_waiting: int, runs: list[Steps]) -> dict[str, float]:
    """Median over steps of the best and of the median of the runs, verb by verb and for plan and apply together."""
    row: dict[str, float] = {"waiting": num_waiting}
    columns = {name: [[step[index] for step in run] for run in runs] for index, name in enumerate(VERBS)}
    columns["plan_and_apply"] = [[step[1] + step[4] for step in run] for run in runs]
    columns["all_verbs"] = [[sum(step) - step[3] for step in run] for run in runs]
    for name, column in columns.items():
        by_step = list(zip(*column, strict=True))
        row[name] = round(statistics.median(min(one) for one in by_step), 1)
        row[f"{name}_median"] = round(statistics.median(statistics.median(one) for one in by_step), 1)
    return row


def set_policy_ms(options: argparse.Namespace, num_waiting: int) -> float:
    """The least time of several changes of policy."""
    load = _load(options, num_waiting)
    for _ in range(20):
        load.step()
    gc.collect()
    gc.freeze()
    found = []
    for version in range(1, options.rounds + 1):
        began = thread_time()
        load.scheduler.set_policy(default_policy(), version, load.now)
        found.append((thread_time() - began) * 1e3)
    return min(found)


def main() -> None:
    """Measure, print a table, write the figures."""
    options = _parser().parse_args()
    if options.policy:
        for num_waiting in options.waiting:
            print(f"set_policy with {num_waiting} waiting: {set_policy_ms(options, num_waiting):.1f} ms")
        return
    pace = pace_us()
    rows = [
        row_of(one, [measure(options, one) for _ in range(options.rounds)]) for one in options.waiting
    ]
    pace = min(pace, pace_us())
    _show(rows, pace)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "pace_us": pace}, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=__doc__)
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--tenants", type=int, default=300)
    parser.add_argument("--mean-output", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300, help="in each round")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of the same steps")
    parser.add_argument("--policy", action="store_true", help="time set_policy instead")
    parser.add_argument("--json", type=Path)
    return parser


def _show(rows: list[dict[str, float]], pace: float) -> None:
    names = [*VERBS, "plan_and_apply", "all_verbs"]
    print("  ".join(f"{name:>14}" for name in ("waiting", "", *names)))
    for row in rows:
        for kind, suffix in (("best", ""), ("median", "_median")):
            figures = (f"{row[name + suffix]:>14.1f}" for name in names)
            print("  ".join((f"{row['waiting']:>14.0f}", f"{kind:>14}", *figures)))
    ratio = rows[-1]["plan_and_apply"] / rows[0]["plan_and_apply"]
    print(f"budget for plan and apply: {STEP_BUDGET_US:g} µs (3 % of a 5 ms step)")
    print(f"the longest queue costs {ratio:.2f} times the shortest; 256 row values took {pace:.0f} µs here")


if __name__ == "__main__":
    main()
