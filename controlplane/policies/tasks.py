"""Keeping Redis's policy equal to Postgres's."""

from __future__ import annotations

from typing import Final

from celery import shared_task
from django.conf import settings

from controlplane.policies import announcing, trials
from controlplane.policies.models import TrialState

LOOK_AGAIN_S: Final = 2


@shared_task(name="policies.reconcile_announcement")
def reconcile_announcement() -> bool:
    """Announce the live policy again when the two differ; whether they did."""
    return announcing.reconcile(settings.TIDEGATE.pool)


@shared_task(name="policies.run_trial")
def run_trial(trial_id: int) -> str:
    """Replay recorded traffic under the live policy and a draft; the state in which the trial ended."""
    state = trials.run(trial_id)
    if state == TrialState.QUEUED:
        run_trial.apply_async((trial_id,), countdown=LOOK_AGAIN_S)
    return state
