"""From a recording of the whole system to figures: what clients saw, where the time went, what was predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from bench.system_clients import CLASSES, Run
from bench.system_load import Seen
from bench.system_prediction import Predictor, known_parts
from bench.system_recording import Recording
from bench.system_sim import Way
from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.report import nearest_rank
from scheduler_worker.sim.run import Outcome

POINTS = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
TTFT_GOALS_MS = {0.85: {"high": 80, "medium": 250, "low": 450}, 1.5: {"high": 100}}
NUM_DRAWS = 5
Say = Callable[[str], None]
Add = Callable[[str, float, str], None]
Table = dict[str, dict[str, float]]


class Point(NamedTuple):
    """One request as it is judged, measured or simulated. Seconds; None where refused."""

    class_id: str
    ttft_s: float | None
    tpot_s: float | None


def measured_points(run: Run) -> list[Point]:
    classes = run.class_of()
    return [Point(classes[one.index], *_times(one)) for one in run.judged()]


def _times(one: Seen) -> tuple[float | None, float | None]:
    if one.status != 200 or one.first_s is None or one.end_s is None:
        return None, None
    tpot_s = (one.end_s - one.first_s) / (one.num_tokens - 1) if one.num_tokens > 1 else None
    return one.first_s - one.sent_s, tpot_s


def predicted_points(run: Run, outcomes: Sequence[Outcome], ways: Sequence[Way]) -> list[Point]:
    """The simulator's answer for the judged requests, with what lies after the worker."""
    points = []
    for one, outcome, way in zip(run.seen, outcomes, ways, strict=True):
        if run.warm_s <= one.sent_s < run.end_s:
            known = None if outcome.refused else outcome.ttft_s
            ttft_s = None if known is None else known + way.after_s
            points.append(Point(outcome.request.class_id, ttft_s, None if ttft_s is None else outcome.tpot_s))
    return points


def figures(points: Sequence[Point], policy: Policy) -> Table:
    """Per class: percentiles in ms, shares in %."""
    found = {}
    for class_id in CLASSES:
        mine = [one for one in points if one.class_id == class_id]
        if mine:
            found[class_id] = _class_figures(mine, policy.find(class_id).slo.ttft_s)
    return found


def median_table(tables: Sequence[Table]) -> Table:
    """Each figure's median: what is measured is one run's percentile, not that of many runs together."""
    return {
        class_id: {name: median(one[class_id][name] for one in tables) for name in tables[0][class_id]}
        for class_id in tables[0]
    }


def _class_figures(mine: Sequence[Point], objective_s: float) -> dict[str, float]:
    values: dict[str, float] = {"requests": len(mine)}
    for name, times in (("ttft", [one.ttft_s for one in mine]), ("tpot", [one.tpot_s for one in mine])):
        values |= percentiles_ms(name, times)
    met = sum(one.ttft_s is not None and one.ttft_s <= objective_s for one in mine)
    values["refused"] = 100 * sum(one.ttft_s is None for one in mine) / len(mine)
    values["ttft_attainment"] = 100 * met / len(mine)
    return values


def percentiles_ms(name: str, times: Sequence[float | None]) -> dict[str, float]:
    """p50, p95, p99 of what is known, in ms."""
    ordered = sorted(one for one in times if one is not None)
    return {f"{name}_{point}": 1e3 * (nearest_rank(ordered, share) or 0.0) for point, share in POINTS if ordered}


def unit_of(name: str) -> str:
    return {"requests": "requests", "refused": "%", "ttft_attainment": "%"}.get(name, "ms")


def rows_of(title: str, table: Table, add: Add, suffix: str = "") -> None:
    """One row for each figure."""
    for class_id, values in table.items():
        for name, value in values.items():
            add(f"{title}: {class_id} {name}{suffix}", value, unit_of(name))


def show(tables: Sequence[Table], say: Say, goals: Mapping[str, float] | None = None) -> None:
    """Tables side by side; with two, the second over the first."""
    for class_id in CLASSES:
        columns = [table.get(class_id, {}) for table in tables]
        for name in columns[0]:
            values = [column.get(name) for column in columns]
            cells = "".join(f"{'–' if one is None else f'{one:,.1f}':>10}" for one in values)
            ratio = f"{values[1] / values[0]:>8.2f}" if len(values) > 1 and values[0] and values[1] else ""
            goal = (goals or {}).get(class_id) if name == "ttft_p99" else None
            say(f"    {class_id:8}{name:18}{cells}{ratio}{f'   goal {goal}' if goal else ''}")


def parts_of(recording: Recording, run: Run) -> dict[str, list[float | None]]:
    """Where the first token's time went, of the judged requests: seconds by part."""
    found: dict[str, list[float | None]] = {}
    for one in run.judged():
        known, ttft_s = known_parts(recording, one), _times(one)[0]
        queued_s = recording.queued.get(one.request_id, (None,))[0]
        if known is None or ttft_s is None or queued_s is None:
            continue
        queue_s, formation_s, prefill_s, gateway_s = known
        for name, value in (
            ("gateway and commit, until queued", queued_s),
            ("queued until claimed", queue_s - queued_s),
            ("claimed until its first step", formation_s),
            ("prefill", prefill_s),
            ("worker to gateway's first byte", gateway_s - queue_s - formation_s - prefill_s),
            ("client and connection", ttft_s - gateway_s),
        ):
            found.setdefault(name, []).append(value)
    return found


def compare(recording: Recording, say: Say, add: Add) -> None:
    """Measured beside predicted, for all loads; and by the learning runs before and after each alone."""
    policy = Policy.model_validate_json(recording.policy)
    predictor = Predictor(recording)
    _tell(predictor, say, add)
    for load, run in recording.runs.items():
        around = predictor.around(run)
        tables = [predicted_table(predictor, load, run, around, NUM_DRAWS)]
        if len(around) > 1:
            tables += [predicted_table(predictor, load, run, [one], 1) for one in around]
            add(f"load {load}: the runs before and after it, alone, predict apart, median", apart(*tables[1:]), "%")
        _compare_one(recording, load, tables, policy, say, add)
        for name, values in parts_of(recording, run).items():
            points = percentiles_ms("", values)
            say(f"    {name:40}" + "  ".join(f"{point[1:]} {value:7.1f}" for point, value in points.items()))
            for point, value in points.items():
                add(f"load {load}: first token, {name}, {point[1:]}", value, "ms")


def predicted_table(predictor: Predictor, load: float, run: Run, sources: Sequence[Run], num_draws: int) -> Table:
    """By these learning runs, with so many draws."""
    draws = [predictor.predict(load, run, sources, seed) for seed in range(num_draws)]
    return median_table([figures(predicted_points(run, *one), predictor.policy) for one in draws])


def apart(one: Table, other: Table) -> float:
    """By how many per cent two predictions differ: the median over the percentiles of all classes."""
    pairs = [(value, other[key][name]) for key in one for name, value in one[key].items() if unit_of(name) == "ms"]
    return 100 * median(abs(its / value - 1.0) for value, its in pairs if value)


def _tell(predictor: Predictor, say: Say, add: Add) -> None:
    """What was learned: the cost model, and what the host adds to it by the rows of a step."""
    known = ", ".join(f"{name} {value:.3g}" for name, value in predictor.fitted.figures.items())
    say(f"learned: {known}")
    beside = predictor.beside
    add("learned: beside the device, a step", 1e3 * beside.base_s, "ms")
    add("learned: beside the device, a row", 1e6 * beside.row_s, "us")
    add("learned: beside the device, variance over the squared mean", beside.variance, "")
    say(
        f"learned, beside the device: {1e3 * beside.base_s:.2f} ms a step, {1e6 * beside.row_s:.2f} us a row; "
        f"variance {beside.variance:.1f}"
    )
    for run, share, added in ((run, *one) for run, known in predictor.known.items() for one in known.items()):
        for name, seconds in added._asdict().items():
            add(f"{run}, at {share} of the capacity: {name.removesuffix('_s')}", 1e3 * seconds, "ms")
        values = ", ".join(f"{name.removesuffix('_s')} {1e3 * one:.2f}" for name, one in added._asdict().items())
        say(f"{run}, at {share} of the capacity: {values} ms")


def _compare_one(
    recording: Recording, load: float, tables: Sequence[Table], policy: Policy, say: Say, add: Add
) -> None:
    measured = figures(measured_points(recording.runs[load]), policy)
    say(f"load {load} of the measured capacity: measured, predicted (by the runs around it, each alone), ratio; goals")
    show([measured, *tables], say, TTFT_GOALS_MS.get(load))
    rows_of(f"load {load}", measured, add)
    rows_of(f"load {load}", tables[0], add, ", simulated")


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows that the goals are about."""
    wanted = ("capacity", "ttft_p99", "ttft_attainment", "refused")
    chosen = [one for one in rows if any(word in one["bench"] for word in wanted)]
    return [f"{one['bench']:48}{one['value']:>12,.1f} {one['unit']}" for one in chosen]
