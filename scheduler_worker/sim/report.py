"""From a history to figures: per class and in all, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scheduler_worker.core.plan import EventKind, Reason
from scheduler_worker.core.policy import ClassPolicy, Policy
from scheduler_worker.sim.run import History, Outcome

Figures = dict[str, Any]
POINTS = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


def nearest_rank(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value with at least `share` of all values at or below it; None without values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles(values: Sequence[float | None]) -> Figures:
    """p50, p95, p99 and max of what is known, by nearest rank."""
    ordered = sorted(value for value in values if value is not None)
    return {name: nearest_rank(ordered, share) for name, share in POINTS}


def report(history: History, policy: Policy, num_workers: int) -> Figures:
    """All figures of one run. `tokens_per_s` counts prompt and output tokens over the makespan; goodput counts
    requests over the window of arrivals."""
    window_s = max((one.arrived_at for one in history.outcomes), default=0.0) or 1.0
    served = [one for one in history.outcomes if not one.refused]
    tokens = sum(one.request.num_prompt_tokens + one.num_output_tokens for one in served)
    by_class = {
        one.id: [out for out in history.outcomes if out.request.class_id == one.id] for one in policy.classes
    }
    good = sum(met(out, policy.find(out.request.class_id)) for out in served)
    return {
        "classes": {
            one.id: _class_figures(by_class[one.id], one, tokens)
            for one in policy.classes
            if by_class[one.id]
        },
        "requests": len(history.outcomes),
        "rejected": len(history.outcomes) - len(served),
        "tokens_per_s": tokens / history.makespan_s,
        "goodput_rps": good / window_s,
        "offered_rps": len(history.outcomes) / window_s,
        "busy_fraction": history.busy_s / history.makespan_s / num_workers,
        "preemptions": history.num_restarts,
        "preemptions_by_priority": _count(history, Reason.PREEMPTED_BY_PRIORITY),
        "preemptions_by_memory": _count(history, Reason.PREEMPTED_BY_MEMORY),
        "bounds_missed": len({one.seq_id for one in history.events if one.kind is EventKind.BOUND_MISSED}),
        "recomputed_tokens": history.recomputed_tokens,
        "recomputed_share": history.recomputed_tokens / max(1, tokens),
        "max_wait_s": max((one.wait_s or 0.0 for one in served), default=0.0),
        "steps": history.num_steps,
        "makespan_s": history.makespan_s,
        "lost_races": history.lost_races,
        "jain_index": _jain(served),
    }


def met(outcome: Outcome, promised: ClassPolicy) -> bool:
    """Whether a request met its class's TTFT and TPOT objectives, both; a refused one has missed."""
    if outcome.refused or outcome.ttft_s is None or outcome.ttft_s > promised.slo.ttft_s:
        return False
    return outcome.tpot_s is None or outcome.tpot_s <= promised.slo.tpot_s


def _class_figures(outcomes: Sequence[Outcome], promised: ClassPolicy, all_tokens: int) -> Figures:
    served = [one for one in outcomes if not one.refused]
    tokens = sum(one.request.num_prompt_tokens + one.num_output_tokens for one in served)
    return {
        "requests": len(outcomes),
        "rejected": len(outcomes) - len(served),
        "ttft_s": percentiles([one.ttft_s for one in served]),
        "tpot_s": percentiles([one.tpot_s for one in served]),
        "e2e_s": percentiles([one.e2e_s for one in served]),
        "wait_s": percentiles([one.wait_s for one in served]),
        "slo_attainment": sum(met(one, promised) for one in outcomes) / len(outcomes),
        "token_share": tokens / max(1, all_tokens),
    }


def _count(history: History, reason: Reason) -> int:
    return sum(event.kind is EventKind.PREEMPTED and event.reason is reason for event in history.events)


def _jain(served: Sequence[Outcome]) -> float | None:
    """Jain's fairness index of tokens served by tenant: (Σx)² / (n Σx²), 1 when all get the same."""
    by_tenant: dict[str, int] = {}
    for one in served:
        tokens = one.request.num_prompt_tokens + one.num_output_tokens
        by_tenant[one.request.tenant] = by_tenant.get(one.request.tenant, 0) + tokens
    values = list(by_tenant.values())
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values)) if values else None


def table(runs: Mapping[str, Figures]) -> str:
    """The runs side by side: one block for each class, then what concerns all."""
    names = list(runs)
    rows: list[list[str]] = [["", *names]]
    for class_id in dict.fromkeys(one for run in runs.values() for one in run["classes"]):
        figures = [run["classes"].get(class_id) for run in runs.values()]
        rows.append([class_id, *("" for _ in names)])
        for label, pick in _CLASS_ROWS:
            rows.append([f"  {label}", *(pick(one) if one else "–" for one in figures)])
    rows.append(["all", *("" for _ in names)])
    for label, key, show in _ALL_ROWS:
        rows.append([f"  {label}", *(show(run[key]) for run in runs.values())])
    return _aligned(rows)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _triple(figures: Figures) -> str:
    return " / ".join(_seconds(figures[point]) for point in ("p50", "p95", "p99"))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_CLASS_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("requests, refused", lambda one: f"{one['requests']:,}, {one['rejected']:,}"),
    ("met both objectives", lambda one: _percent(one["slo_attainment"])),
    ("TTFT p50 / p95 / p99", lambda one: _triple(one["ttft_s"])),
    ("TPOT p50 / p95 / p99", lambda one: _triple(one["tpot_s"])),
    ("longest wait", lambda one: _seconds(one["wait_s"]["max"])),
    ("share of tokens", lambda one: _percent(one["token_share"])),
)
_ALL_ROWS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("tokens/s", "tokens_per_s", _number),
    ("goodput, requests/s", "goodput_rps", _number),
    ("offered, requests/s", "offered_rps", _number),
    ("refused", "rejected", _number),
    ("busy", "busy_fraction", _percent),
    ("preemptions", "preemptions", _number),
    ("recomputed tokens", "recomputed_share", _percent),
    ("longest wait", "max_wait_s", _seconds),
    ("bounds missed", "bounds_missed", _number),
    ("fairness between tenants (Jain)", "jain_index", _number),
)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()
