"""Keeping Redis's policy equal to Postgres's."""

from __future__ import annotations

from celery import shared_task
from django.conf import settings

from controlplane.policies import announcing, trials


@shared_task(name="policies.reconcile_announcement")
def reconcile_announcement() -> bool:
    """Announce the live policy again when the two differ; whether they did."""
    return announcing.reconcile(settings.TIDEGATE.pool)


@shared_task(name="policies.run_trial")
def run_trial(trial_id: int) -> str:
    """Replay recorded traffic under the live policy and a draft, then let the next begin; the trial's state."""
    state = trials.run(trial_id)
    run_next_trial()
    return state


@shared_task(name="policies.run_next_trial")
def run_next_trial() -> int | None:
    """Queue the trial whose turn it is, if none runs. Beat asks too: Celery may have been killed with one in hand."""
    due = trials.next_due(settings.TIDEGATE.pool)
    if due is not None:
        run_trial.delay(due)
    return due
