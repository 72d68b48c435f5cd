"""From recorded traffic to what the simulator replays: unknown lengths are drawn from known ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from controlplane.inference.traffic import Recorded
from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.replay import served_by
from scheduler_worker.sim.report import nearest_rank

SEED: Final = 0


@dataclass(frozen=True)
class Workload:
    """`requests` are the fields of `scheduler_worker.sim.trace.Request`, arrivals counted from the first."""

    requests: list[dict[str, Any]]
    num_guessed: int


def workload(recorded: Sequence[Recorded], weights: Mapping[str, float]) -> Workload:
    """The same traffic gives the same workload. An answer's length is unknown where the request was refused, or had
    no token yet: then it is drawn from the lengths of its class, or of all where its class has none."""
    lengths = _lengths(recorded)
    draw = Random(f"lengths-{SEED}")
    start = recorded[0].arrived_at
    requests = [
        {
            "arrival_s": one.arrived_at - start,
            "num_prompt_tokens": max(1, one.num_prompt_tokens),
            "num_output_tokens": one.num_output_tokens or _drawn(one, lengths, draw),
            "class_id": one.class_id,
            "tenant": one.tenant,
            "max_tokens": one.max_tokens,
            "tenant_weight": weights.get(one.tenant, 1.0),
        }
        for one in recorded
    ]
    return Workload(requests, sum(one.num_output_tokens is None for one in recorded))


def _lengths(recorded: Sequence[Recorded]) -> dict[str, list[int]]:
    lengths: dict[str, list[int]] = {"": []}
    for one in recorded:
        if one.num_output_tokens is not None:
            lengths[""].append(one.num_output_tokens)
            lengths.setdefault(one.class_id, []).append(one.num_output_tokens)
    return lengths


def _drawn(one: Recorded, lengths: Mapping[str, list[int]], draw: Random) -> int:
    known = lengths.get(one.class_id) or lengths[""]
    return max(1, min(draw.choice(known), one.max_tokens) if known else one.max_tokens)


def measured(recorded: Sequence[Recorded], policy: Policy) -> dict[str, dict[str, Any]]:
    """What gateways measured of the same requests, by the class of `policy`, judged by its objectives."""
    by_class: dict[str, list[Recorded]] = {one.id: [] for one in policy.classes}
    for one in recorded:
        by_class[served_by(policy, one.class_id)].append(one)
    return {one.id: _measured(by_class[one.id], one.slo.ttft_s, one.slo.tpot_s) for one in policy.classes}


def _measured(rows: Sequence[Recorded], ttft_objective_s: float, tpot_objective_s: float) -> dict[str, Any]:
    ended = [one for one in rows if one.ttft_s is not None]
    ttfts = sorted(one.ttft_s for one in ended if one.ttft_s is not None)
    met = sum(
        (one.ttft_s or 0.0) <= ttft_objective_s and (one.tpot_s or 0.0) <= tpot_objective_s for one in ended
    )
    return {
        "num": len(rows),
        "num_refused": sum(one.is_refused for one in rows),
        "within": met / len(ended) if ended else None,
        "ttft_p50_s": nearest_rank(ttfts, 0.5),
        "ttft_p99_s": nearest_rank(ttfts, 0.99),
    }
