"""What a trial says, in sentences: who would be better or worse off under the draft, and by how much.

Differences below `NOISE` are written as none: the simulator is not that exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

NOISE: Final = 0.05
NOISE_S: Final = 0.01
NOISE_SHARE: Final = 0.005
MAX_CLAUSES: Final = 2
Figures = Mapping[str, Any]
Kind = Literal["better", "worse", "same"]


@dataclass(frozen=True)
class Effect:
    """What the draft does to one class. `rank` orders effects: a promise that breaks comes before all else."""

    kind: Kind
    class_id: str
    text: str
    rank: int


def verdict(
    active: Mapping[str, Figures], draft: Mapping[str, Figures], heirs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`{headline, effects}` for the figures of both runs by class. `heirs` serve what the draft retires."""
    effects = [one for class_id in draft for one in _effects(class_id, active.get(class_id), draft[class_id])]
    effects += [_retired(one, heirs[one], active[one]) for one in active if heirs and one in heirs]
    told = sorted((one for one in effects if one.kind != "same"), key=lambda one: one.rank)
    known = [{name: value for name, value in asdict(one).items() if name != "rank"} for one in effects]
    return {"headline": _headline(told), "effects": known}


def _headline(told: list[Effect]) -> str:
    if not told:
        return f"No class would notice: no figure differs by {NOISE:.0%} or more.".replace("%", " %")
    clauses = "; ".join(one.text for one in told[:MAX_CLAUSES])
    more = len(told) - MAX_CLAUSES
    return f"{clauses}; and {more} more below." if more > 0 else f"{clauses}."


def _effects(class_id: str, before: Figures | None, after: Figures) -> Iterator[Effect]:
    if before is None:
        if not after["num"]:
            yield Effect("same", class_id, f"{class_id} is new: no recorded request names it", 9)
            return
        kept = _is_kept(after)
        text = f"{class_id} is new and would {'keep' if kept else 'break'} its promise: {_share(after)}"
        yield Effect("better" if kept else "worse", class_id, text, 3 if kept else 0)
        return
    if not before["num"] and not after["num"]:
        yield Effect("same", class_id, f"{class_id} had no request in this traffic", 9)
        return
    found = [one for one in (_promise(class_id, before, after), _wait(class_id, before, after)) if one]
    found = [*found[:1], *_refusals(class_id, before, after)]
    yield from found or [Effect("same", class_id, _same(class_id, after), 9)]


def _retired(class_id: str, heir: str, before: Figures) -> Effect:
    num = before["num"]
    requests = f"{num:,} request{'' if num == 1 else 's'}"
    return Effect("same", class_id, f"{class_id} is retired: {heir} would serve its {requests}", 9)


def _same(class_id: str, after: Figures) -> str:
    if after["within"] is None:
        return f"{class_id} would have nobody let in"
    verb = "keep" if _is_kept(after) else "still break"
    return f"{class_id} would hardly notice and {verb} its promise: {_share(after)}"


def _promise(class_id: str, before: Figures, after: Figures) -> Effect | None:
    """Whether the promise is kept changes, or the share within the objectives does."""
    was, now = before["within"], after["within"]
    if was is None or now is None:
        return None
    kept, was_kept = _is_kept(after), _is_kept(before)
    if kept == was_kept and abs(now - was) < NOISE_SHARE:
        return None
    verb = f"{'still ' if kept == was_kept else ''}{'keep' if kept else 'break'}"
    text = f"{class_id} would {verb} its promise: {_share(after)}, instead of {_percent(was)}"
    rank = 2 if kept == was_kept else 1 if kept else 0
    return Effect("better" if now > was else "worse", class_id, text, rank)


def _wait(class_id: str, before: Figures, after: Figures) -> Effect | None:
    """The wait for the first token at p99 changes."""
    was, now = before["ttft_p99_s"], after["ttft_p99_s"]
    if was is None or now is None or abs(now - was) < max(NOISE_S, NOISE * max(was, now)):
        return None
    change = "longer" if now > was else "less"
    by = f"{_seconds(abs(now - was))} {change}"
    text = f"{class_id} would wait {by} at p99: {_seconds(now)} instead of {_seconds(was)}"
    return Effect("worse" if now > was else "better", class_id, text, 3)


def _refusals(class_id: str, before: Figures, after: Figures) -> Iterator[Effect]:
    """More or fewer are refused."""
    was, now = before["num_refused"], after["num_refused"]
    if abs(now - was) < max(1.0, NOISE_SHARE * after["num"]):
        return
    change = "more" if now > was else "fewer"
    text = f"{class_id} would have {abs(now - was):,} {change} refused: {now:,} of {after['num']:,} instead of {was:,}"
    yield Effect("worse" if now > was else "better", class_id, text, 4)


def _is_kept(figures: Figures) -> bool:
    return figures["within"] is None or figures["within"] >= figures["target"]


def _share(figures: Figures) -> str:
    """ "99.4 % within 100 ms and 25 ms a token": both objectives count."""
    objectives = f"{_seconds(figures['ttft_objective_s'])} and {_seconds(figures['tpot_objective_s'])} a token"
    return f"{_percent(figures['within'])} within {objectives}"


def _percent(share: float | None) -> str:
    return "nobody" if share is None else f"{int(share * 1000 + 1e-6) / 10:g} %"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
