"""Queue depth and TTFT over time per class, one column a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.run import History

COLORS = ("#1f49b6", "#0b867c", "#a57cdd", "#8a6d00", "#b0447e", "#5d6b7a")


class PlottingMissing(RuntimeError):
    """matplotlib is not installed."""


def save_plot(path: Path, runs: Mapping[str, History], policies: Mapping[str, Policy]) -> None:
    """Write the picture; raises `PlottingMissing` without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise PlottingMissing("--plot needs matplotlib: pip install 'tidegate[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(runs), figsize=(6 * len(runs), 7), squeeze=False, sharex=True)
    for column, (name, history) in enumerate(runs.items()):
        _draw_depth(axes[0][column], name, history, policies[name])
        _draw_ttft(axes[1][column], history, policies[name])
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_depth(axis: Any, name: str, history: History, policy: Policy) -> None:
    axis.set_title(name)
    axis.set_ylabel("waiting requests")
    at = [sample.at for sample in history.samples]
    for one, color in zip(policy.classes, _colors(policy), strict=True):
        axis.plot(
            at, [sample.waiting.get(one.id, 0) for sample in history.samples], color=color, label=one.id, lw=1
        )
    axis.legend(frameon=False)


def _draw_ttft(axis: Any, history: History, policy: Policy) -> None:
    axis.set_xlabel("s since the trace's start")
    axis.set_ylabel("TTFT, s")
    axis.set_yscale("log")
    for one, color in zip(policy.classes, _colors(policy), strict=True):
        served = [
            out for out in history.outcomes if out.request.class_id == one.id and out.ttft_s is not None
        ]
        axis.plot(
            [out.arrived_at for out in served],
            [max(out.ttft_s or 0.0, 1e-4) for out in served],
            ",",
            color=color,
        )
        axis.axhline(one.slo.ttft_s, color=color, ls="--", lw=0.8)


def _colors(policy: Policy) -> Sequence[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(policy.classes))]
