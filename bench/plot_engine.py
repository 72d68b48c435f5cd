"""Decode steps over batch size from `bench.engine`'s rows: `python -m bench.plot_engine ROWS.json OUT.svg --runs B A`.

Needs matplotlib, the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = ("#1f49b6", "#0b867c", "#a57cdd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--runs", nargs="+", default=[], help="where the file holds several: each engine's first of these is drawn"
    )
    arguments = parser.parse_args()
    rows = json.loads(arguments.rows.read_text())["rows"]
    decodes = [row for row in rows if row["bench"] == "decode"]
    models = sorted({row["model"] for row in decodes})
    figure, axes = pyplot.subplots(1, len(models), figsize=(5 * len(models), 3.6), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        draw(axis, model, [row for row in decodes if row["model"] == model], arguments.runs)
    figure.tight_layout()
    figure.savefig(arguments.out)


def draw(axis: Any, model: str, rows: list[dict[str, Any]], runs: list[str]) -> None:
    """One model: each engine's steps, and the floor."""
    for engine, color in zip(dict.fromkeys(row["engine"] for row in rows), COLORS, strict=False):
        own = [row for row in rows if row["engine"] == engine]
        by_run = ([row for row in own if row.get("run") == run] for run in runs)
        found = next(filter(None, by_run), own)
        axis.plot(
            [row["batch"] for row in found], [row["value"] for row in found], "o-", color=color, label=engine
        )
    floors = {row["batch"]: row["floor"] for row in rows}
    axis.plot(list(floors), list(floors.values()), ":", color="#5d6b7a", label="floor")
    axis.set_title(model)
    axis.set_xlabel("rows that decode, 1,024 tokens of context each")
    axis.set_ylabel("ms a step")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()
