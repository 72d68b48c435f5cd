"""Trying a draft on recorded traffic before it is published: asked for, run by Celery, cancelled.

The simulator replays the same requests twice, under the live version and under the draft, in a process of its own.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from controlplane.audit.services import record
from controlplane.common.errors import Conflict, TidegateError, TooMany
from controlplane.fleet import selectors as fleet
from controlplane.inference import traffic
from controlplane.inference.traffic import Recorded
from controlplane.policies import selectors, services
from controlplane.policies.models import OPEN_TRIAL_STATES, Pool, Trial, TrialState
from controlplane.policies.verdict import verdict
from controlplane.policies.workload import Workload, measured, workload
from controlplane.tenants.selectors import weights
from scheduler_worker.core.policy import Policy
from scheduler_worker.sim.replay import served_by

logger = logging.getLogger(__name__)
MAX_REQUESTS: Final = 20_000
MAX_OPEN: Final = 4
TIME_LIMIT_S: Final = 300.0
SILENT_S: Final = 30.0
"""A running trial that says nothing for so long has lost its Celery process."""
LOST_AFTER_S: Final = 900.0
KEPT_DAYS: Final = 90
WINDOWS_S: Final = (900, 3600, 86_400)
COMMAND: Final = (sys.executable, "-m", "scheduler_worker.sim.replay")
SIZES: Final = ("num_slots", "num_blocks", "block_size", "max_model_len")
NO_WORKER: Final = (
    "No live worker has published how long its steps take yet, so nothing can be replayed on it. "
    "Try again once a worker is live."
)


class TrialFailed(TidegateError):
    """The simulation gave no result."""


@dataclass(frozen=True)
class Traffic:
    """What could be replayed: how many requests arrived since each window began, None being the whole record."""

    windows: list[tuple[int | None, int]]
    num_workers: int


def available(pool: str) -> Traffic:
    """What there is to try a draft on now."""
    now = time.time()
    since = [0.0, *(now - one for one in WINDOWS_S)]
    counts = traffic.count(pool, since=since, until=now, limit=MAX_REQUESTS)
    windows = [(window, min(num, MAX_REQUESTS)) for window, num in zip((None, *WINDOWS_S), counts, strict=True)]
    return Traffic([*windows[1:], windows[0]], len(_workers(pool)))


def start(*, pool: str, document: Mapping[str, Any], window_s: int | None, author: str) -> Trial:
    """Queue a trial. An open one of the same author is cancelled: the draft went on.

    Raises `Invalid` with every mistake of the document, `Conflict` without traffic or workers to replay on, and
    `TooMany` while others' trials are under way.
    """
    policy = services.validate(pool=pool, document=document)
    live = selectors.active(pool)
    now = timezone.now()
    if not traffic.recorded(pool, since=_since(now, window_s), until=now.timestamp(), limit=1):
        raise Conflict(_no_traffic(window_s))
    if not _workers(pool):
        raise Conflict(NO_WORKER)
    with _queue(pool):
        _make_room(pool, author, now)
        trial = Trial.objects.create(
            pool=pool,
            author=author,
            base_version=live.version,
            document=policy.model_dump(mode="json"),
            window_s=window_s,
            created_at=now,
        )
        _record("try", trial, author)
        transaction.on_commit(lambda: _enqueue(trial.pk))
    return trial


def cancel(*, trial: Trial, actor: str) -> Trial:
    """End a trial without a result. One that has ended stays as it is."""
    with transaction.atomic():
        if _finish(trial.pk, TrialState.CANCELLED, problem=f"Cancelled by {actor}."):
            _record("cancel trial", trial, actor)
    trial.refresh_from_db()
    return trial


def give_up_if_lost(trial: Trial) -> Trial:
    """A trial whose Celery worker is gone for good must not look as if it went on."""
    if trial.state in OPEN_TRIAL_STATES and _is_lost(trial, timezone.now()):
        why = "Nobody ran it within 15 min: Celery is not running, or busy for long. Try again."
        _finish(trial.pk, TrialState.FAILED, problem=why)
        trial.refresh_from_db()
    return trial


def run(trial_id: int) -> str:
    """Run an open trial to its end; the state in which it ended, or the one that it keeps while one of the pool runs.

    One at a time: Celery has other things to do. Who finds another running leaves; `next_due` names whose turn it is.
    """
    found = Trial.objects.filter(pk=trial_id).values_list("pool", flat=True).first()
    if found is None:
        return TrialState.CANCELLED
    now = timezone.now()
    with _queue(found):
        if _is_busy(found, now):
            return str(Trial.objects.values_list("state", flat=True).get(pk=trial_id))
        begun = {"state": TrialState.RUNNING, "started_at": now, "heard_at": now, "num_done": 0, "num_total": 0}
        if not _open(trial_id).update(**begun):
            return TrialState.CANCELLED
    trial = Trial.objects.get(pk=trial_id)
    try:
        _finish(trial_id, TrialState.DONE, result=_run(trial))
    except TidegateError as error:
        _finish(trial_id, TrialState.FAILED, problem=error.message)
    except Exception:
        _finish(trial_id, TrialState.FAILED, problem="Something failed on our side; the log of Celery says what.")
        raise
    return str(Trial.objects.values_list("state", flat=True).get(pk=trial_id))


def next_due(pool: str) -> int | None:
    """The oldest open trial that nobody runs; None while one runs, or none is open.

    What Celery held when it was killed is found here again, from its first request on. What is lost is given up.
    """
    for one in Trial.objects.filter(pool=pool, state__in=OPEN_TRIAL_STATES).order_by("pk"):
        give_up_if_lost(one)
    if _is_busy(pool, timezone.now()):
        return None
    found = Trial.objects.filter(pool=pool, state__in=OPEN_TRIAL_STATES).order_by("pk")
    return found.values_list("pk", flat=True).first()


def _run(trial: Trial) -> dict[str, Any]:
    started = time.monotonic()
    found = _recorded(trial)
    workers = _workers(trial.pool)
    if not workers:
        raise Conflict(NO_WORKER)
    active = selectors.version_of(trial.pool, trial.base_version).document
    made = workload(found, weights())
    job = {
        "policies": {"active": active, "draft": trial.document},
        "requests": made.requests,
        "workers": workers,
    }
    runs = _simulate(trial.pk, job)
    seen = measured(found, Policy.model_validate(active))
    return {
        **_about(found, made, workers),
        "took_s": time.monotonic() - started,
        "classes": _by_class(runs["active"], runs["draft"], seen),
        "verdict": verdict(runs["active"], runs["draft"], _heirs(runs["active"], trial.document)),
    }


def _heirs(class_ids: Iterable[str], document: Mapping[str, Any]) -> dict[str, str]:
    """Who serves, under the draft, each class that it retires."""
    draft = Policy.model_validate(document)
    heirs = {one: served_by(draft, one) for one in class_ids}
    return {one: heir for one, heir in heirs.items() if heir != one}


def _recorded(trial: Trial) -> list[Recorded]:
    until = trial.created_at
    since = _since(until, trial.window_s)
    found = traffic.recorded(trial.pool, since=since, until=until.timestamp(), limit=MAX_REQUESTS)
    if not found:
        raise Conflict(_no_traffic(trial.window_s))
    return found


def _about(found: list[Recorded], made: Workload, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """What was replayed, and where. `is_cut`: there was more, and the newest were taken."""
    return {
        "from_at": found[0].arrived_at,
        "to_at": found[-1].arrived_at,
        "num_requests": len(found),
        "num_refused": sum(one.is_refused for one in found),
        "num_guessed": made.num_guessed,
        "num_cached": sum(one.num_cached_tokens > 0 for one in found),
        "is_cut": len(found) >= MAX_REQUESTS,
        "num_workers": len(workers),
        "num_slots": sum(one["num_slots"] for one in workers),
        "num_kv_tokens": sum(one["num_blocks"] * one["block_size"] for one in workers),
    }


def _by_class(active: Mapping[str, Any], draft: Mapping[str, Any], seen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The draft's classes, then those that it retires."""
    return [
        {"class_id": one, "measured": seen.get(one), "active": active.get(one), "draft": draft.get(one)}
        for one in dict.fromkeys([*draft, *active])
    ]


def _simulate(trial_id: int, job: Mapping[str, Any]) -> dict[str, Any]:
    """Both runs in a process that ends when it takes too long or nobody wants its result any more."""
    command = subprocess.Popen(
        COMMAND, cwd=settings.BASE_DIR, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    is_late = threading.Event()
    timer = threading.Timer(TIME_LIMIT_S, lambda: (is_late.set(), command.kill()))
    timer.start()
    try:
        with command:
            _feed(command, job)
            return _result(trial_id, command, is_late)
    finally:
        timer.cancel()


def _feed(command: subprocess.Popen[str], job: Mapping[str, Any]) -> None:
    try:
        with command.stdin as stdin:  # type: ignore[union-attr]
            json.dump(job, stdin)
    except BrokenPipeError:
        logger.warning("the simulation ended before it had read its job")


def _result(trial_id: int, command: subprocess.Popen[str], is_late: threading.Event) -> dict[str, Any]:
    """Follow what the process says until it names its runs. Raises `TrialFailed` when it never does."""
    try:
        for line in command.stdout or ():
            said = json.loads(line)
            if "runs" in said:
                runs: dict[str, Any] = said["runs"]
                return runs
            if "error" in said:
                raise TrialFailed(said["error"])
            heard = {"num_done": said["done"], "num_total": said["total"], "heard_at": timezone.now()}
            if not _open(trial_id).update(**heard):
                raise TrialFailed("It was cancelled.")
    finally:
        command.kill()
    if is_late.is_set():
        raise TrialFailed(f"It took longer than {TIME_LIMIT_S / 60:.0f} min. Choose a shorter window.")
    raise TrialFailed("The simulation ended without a result; the log of Celery says why. Try again.")


def _workers(pool: str) -> list[dict[str, Any]]:
    """The live workers' sizes and cost models, as `scheduler_worker.sim.replay` reads them."""
    infos = [one.info for one in fleet.workers(pool) if one.state == "live" and one.info is not None]
    return [
        {**{name: getattr(info, name) for name in SIZES}, "cost_model": info.cost_model}
        for info in infos
        if "base_s" in info.cost_model
    ]


def _since(until: datetime, window_s: int | None) -> float | None:
    return None if window_s is None else until.timestamp() - window_s


def _no_traffic(window_s: int | None) -> str:
    if window_s is None:
        return "No request was recorded yet, so there is nothing to try the draft on. Send some, then try again."
    return f"No request was recorded in the last {_span(window_s)}. Choose a longer window, or send some requests."


def _span(window_s: int) -> str:
    for unit_s, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        num, rest = divmod(window_s, unit_s)
        if num and not rest:
            return f"{num} {unit}{'' if num == 1 else 's'}"
    return f"{window_s} s"


@contextmanager
def _queue(pool: str) -> Iterator[None]:
    """A transaction in which nobody else queues a trial of this pool."""
    with transaction.atomic():
        Pool.objects.get_or_create(name=pool)
        Pool.objects.select_for_update().get(name=pool)
        yield


def _make_room(pool: str, author: str, now: datetime) -> None:
    """End what nobody waits for, forget what is old; raises `TooMany` when others' trials fill the queue."""
    Trial.objects.filter(created_at__lt=now - timedelta(days=KEPT_DAYS)).delete()
    still_open = list(Trial.objects.filter(pool=pool, state__in=OPEN_TRIAL_STATES))
    for one in still_open:
        if one.author == author:
            _finish(one.pk, TrialState.CANCELLED, problem=f"{author} started another.")
    others = [one for one in still_open if one.author != author and not _is_lost(one, now)]
    if len(others) >= MAX_OPEN:
        raise TooMany(f"{len(others)} trials of other operators are under way. Try again in a minute.", 60)


def _is_busy(pool: str, now: datetime) -> bool:
    """Whether a trial runs and is heard of. One that fell silent is no obstacle: its process is gone."""
    since = now - timedelta(seconds=SILENT_S)
    return Trial.objects.filter(pool=pool, state=TrialState.RUNNING, heard_at__gte=since).exists()


def _is_lost(trial: Trial, now: datetime) -> bool:
    return (now - trial.created_at).total_seconds() > LOST_AFTER_S


def _open(trial_id: int) -> Any:
    return Trial.objects.filter(pk=trial_id, state__in=OPEN_TRIAL_STATES)


def _finish(trial_id: int, state: TrialState, *, problem: str = "", result: dict[str, Any] | None = None) -> bool:
    """Write an end, unless there is one; whether there was none."""
    fields: dict[str, Any] = {"state": state, "problem": problem, "result": result, "finished_at": timezone.now()}
    if state == TrialState.DONE:
        fields["num_done"] = F("num_total")
    return bool(_open(trial_id).update(**fields))


def _enqueue(trial_id: int) -> None:
    from controlplane.policies.tasks import run_trial  # the tasks import this module

    run_trial.delay(trial_id)


def _record(action: str, trial: Trial, actor: str) -> None:
    record(
        actor=actor,
        action=action,
        object_type="policy",
        object_id=f"{trial.pool}/trial-{trial.pk}",
        before={"version": trial.base_version},
        after={"document": trial.document, "window_s": trial.window_s},
    )
