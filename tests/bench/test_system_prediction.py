"""A recording made by the simulator, with a host that is known: what is learned from it must predict its other run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import pytest

from bench import system_sim
from bench.system_clients import Lengths, Run, Workload
from bench.system_doors import Doors
from bench.system_load import Planned, Seen
from bench.system_prediction import UNTOLD_S, Predictor
from bench.system_recording import ONCE, Recording, Steps
from bench.system_report import figures, measured_points, predicted_table
from bench.system_sim import Fitted, Way, fit, simulate
from scheduler_worker.core.plan import Applied, StepPlan, StepResult, StepShape
from scheduler_worker.core.policy import default_policy
from scheduler_worker.core.scheduler import Scheduler
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.sim.host import Host
from scheduler_worker.sim.run import Outcome

POLICY = default_policy()
LENGTHS = Lengths((50, 150), 2.5, 0.6, (4, 40))
CAPACITY_PER_S = 120.0
PART_S = 4.0
MESSAGE_S = 0.25
WAY = Way(0.004, 0.003)
LEARNING_AT, LOAD_AT, LOAD_S, AFTER_AT = 100.0, 200.0, 12.0, 300.0
# of a step of 16 rows, context is a seventh
COST = {"base_s": 0.003, "decode_row_s": 5e-5, "prefill_token_s": 1e-5, "kv_token_s": 6e-7, "attention_pair_s": 1e-8}


class KnownHost(Host):
    """Late by a line over the rows, twice as much in every second step."""

    def __init__(self) -> None:
        super().__init__(0.001)
        self._num_steps = 0

    def beside_s(self, now: float, num_rows: int) -> float:
        self._num_steps += 1
        return (0.0005 + 1e-4 * num_rows) * (0.5 if self._num_steps % 2 else 1.5)


class KinkedHost(KnownHost):
    """And by 1 ms, a fifth of a step, when most slots are taken: what no line can follow."""

    def beside_s(self, now: float, num_rows: int) -> float:
        return super().beside_s(now, num_rows) + (0.001 if num_rows > 10 else 0.0)


class DriftingHost(KnownHost):
    """And by so many seconds at first, and at last, as long as a load takes."""

    def __init__(self, first_s: float, last_s: float) -> None:
        super().__init__()
        self._first_s, self._last_s = first_s, last_s

    def beside_s(self, now: float, num_rows: int) -> float:
        share = min(1.0, now / LOAD_S)
        return super().beside_s(now, num_rows) + (1.0 - share) * self._first_s + share * self._last_s


class Watched(Scheduler):
    """Keeps what a worker's messages would tell: each step's end, shape and tokens."""

    steps: list[tuple[float, StepShape, int]]

    def begin(self, plan: StepPlan) -> None:
        self.__dict__.setdefault("shapes", []).append(plan.shape)
        super().begin(plan)

    def apply_result(self, result: StepResult, now: float) -> Applied:
        applied = super().apply_result(result, now)
        num_tokens = sum(num for _, num in applied.tokens.rows) if applied.tokens else 0
        type(self).steps.append((now, self.__dict__["shapes"].pop(0), num_tokens))
        return applied


def _messages(steps: Iterable[tuple[float, StepShape, int]], began_at: float) -> list[Steps]:
    """One for each quarter of a second with steps, from the end of one step to that of another."""
    found, before_s = [], 0.0
    for _, grouped in groupby(steps, lambda step: int(step[0] / MESSAGE_S)):
        mine = list(grouped)
        end_s, shape, _ = mine[-1]
        num_prompt = sum(one.num_prefill_tokens for _, one, _ in mine)
        found.append(
            Steps(
                at=began_at + end_s, interval_s=end_s - before_s, num_steps=len(mine),
                num_generated=sum(num for _, _, num in mine), num_prompt=num_prompt,
                num_running=shape.num_decode_rows, num_slots=16, batch_limit=16, num_context=shape.num_kv_tokens,
                num_prompt_running=0, num_waiting={}, step_p50_s=None, step_p99_s=None, overhead_p50_s=None,
            )
        )  # fmt: skip
        before_s = end_s
    return found


def _seen(planned: Planned, outcome: Outcome) -> Seen:
    """As the client has it, with `WAY` before and after the worker."""
    if outcome.refused or outcome.first_token_at is None or outcome.finished_at is None:
        return Seen(planned.index, planned.at_s, 0.0, 429)
    first_s, end_s = outcome.first_token_at + WAY.after_s, outcome.finished_at + WAY.after_s
    return Seen(planned.index, planned.at_s, 0.0, 200, first_s, end_s, outcome.num_output_tokens, f"r{planned.index}")


def _recorded(
    recording: Recording, fitted: Fitted, name: str, requests: list[Planned], began_at: float, host: Host
) -> Run:
    """A run of this host, kept with its parts and messages."""
    sent = [Seen(one.index, one.at_s, 0.0) for one in requests]
    end_s = max(one.at_s for one in requests)
    asked = Run(name, requests, sent, 1.0, end_s, began_at)
    Watched.steps = []
    doors = Doors(POLICY, fitted.capacity, 1, 0.0)
    outcomes = simulate(asked, POLICY, fitted, host, doors, [WAY] * len(requests))
    recording.steps[name] = _messages(Watched.steps, began_at)
    for planned, one in zip(requests, outcomes, strict=True):
        if one.claimed_at is not None and one.first_scheduled_at is not None and one.first_token_at is not None:
            claimed_s, scheduled_s = one.claimed_at - one.arrived_at, one.first_scheduled_at - one.arrived_at
            prefill_s = one.first_token_at - one.first_scheduled_at
            recording.parts[f"r{planned.index}"] = [claimed_s, scheduled_s - claimed_s, prefill_s, 0.0]
            recording.queued[f"r{planned.index}"] = [WAY.before_s - UNTOLD_S, claimed_s - WAY.before_s]
    asked.seen = [_seen(planned, one) for planned, one in zip(requests, outcomes, strict=True)]
    return asked


def _recording(load: float, host: Callable[[], Host], *learning: tuple[float, Host, list[float]]) -> Recording:
    """The load on one host, and learning runs: when, on which host, at which shares of the capacity."""
    info = WorkerInfo(
        worker="w", pool="p", model="m", started_at=1.0, num_slots=16, num_blocks=4000, block_size=16,
        max_model_len=4096, cost_model=COST,
    )  # fmt: skip
    idle = Run("capacity", [], [], 0.0, 1.0, 0.0)
    recording = Recording(POLICY.model_dump_json().encode(), 2, 0, info, [], idle, [], {}, {})
    recording.queued, recording.steps = {}, {}
    fitted, workload = fit(info, 2, 0), Workload(LENGTHS, 1)
    steady = workload.arrivals([(load * CAPACITY_PER_S, LOAD_S)], seed=2)
    recording.runs = {load: _recorded(recording, fitted, f"load {load}", steady, LOAD_AT, host())}
    for number, (at, own, shares) in enumerate(learning or [(LEARNING_AT, host(), ONCE)]):
        rates = workload.arrivals([(share * CAPACITY_PER_S, PART_S) for share in shares], seed=1 + 9 * number)
        run = _recorded(recording, fitted, f"learning {number}", rates, at, own)
        run.shares, run.end_s = shares, PART_S * len(shares)
        recording.learning.append(run)
    return recording


def _ratios(
    predictor: Predictor, recording: Recording, load: float, names: Sequence[str], *sources: Run
) -> dict[str, float]:
    run = recording.runs[load]
    predicted = predicted_table(predictor, load, run, sources or predictor.around(run), num_draws=3)
    measured = figures(measured_points(run), POLICY)
    return {
        f"{class_id} {name}": predicted[class_id][name] / measured[class_id][name]
        for class_id in measured
        for name in names
    }


@pytest.fixture(autouse=True)
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_sim, "Scheduler", Watched)


def test_a_load_between_those_learned_is_predicted_within_a_few_per_cent() -> None:
    load = 0.8
    recording = _recording(load, KnownHost)
    ratios = _ratios(Predictor(recording), recording, load, ("ttft_p50", "tpot_p50"))

    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=0.05)


def test_steps_that_no_line_follows_are_predicted_as_they_were_at_that_rate() -> None:
    """By the line alone, times per token are 7 to 8 % too short here."""
    load = 1.2
    recording = _recording(load, KinkedHost)
    ratios = _ratios(Predictor(recording), recording, load, ("tpot_p50",))

    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), abs=0.05)


def test_a_host_that_drifts_is_predicted_between_the_learning_runs_before_and_after_the_load() -> None:
    """Steps become a fifth longer while the load is measured; as they were before, times per token were too short."""
    load, slower_s = 0.8, 0.001
    before = (LEARNING_AT, KnownHost(), [0.7, 0.9])
    after = (AFTER_AT, DriftingHost(slower_s, slower_s), [0.9, 0.7])
    drifting = _recording(load, lambda: DriftingHost(0.0, slower_s), before, after)
    predictor = Predictor(drifting)
    ratios = _ratios(predictor, drifting, load, ("tpot_p50",))
    by_before = _ratios(predictor, drifting, load, ("tpot_p50",), drifting.learning[0])

    assert (ratios, max(by_before.values()) < 0.9) == (pytest.approx(dict.fromkeys(ratios, 1.0), abs=0.05), True)
