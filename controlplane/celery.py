"""The Celery app: everything that is off the request path. `celery -A controlplane worker`."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

from django.conf import settings

app = Celery("controlplane", broker=settings.TIDEGATE.redis_url)
app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": 600,
        "global_keyprefix": f"tidegate:{settings.TIDEGATE.pool}:",
    },
    task_default_queue="tidegate",
    timezone="UTC",
    beat_schedule={
        "requeue-expired": {
            "task": "inference.requeue_expired",
            "schedule": 1.0,
            "options": {"expires": 1.0},
        },
        "announce-policy": {
            "task": "policies.reconcile_announcement",
            "schedule": 5.0,
            "options": {"expires": 5.0},
        },
        "run-next-trial": {
            "task": "policies.run_next_trial",
            "schedule": 5.0,
            "options": {"expires": 5.0},
        },
        "find-lost-requests": {
            "task": "inference.reconcile_lost",
            "schedule": 15.0,
            "options": {"expires": 15.0},
        },
        "purge-payloads": {
            "task": "inference.purge_payloads",
            "schedule": 60.0,
            "options": {"expires": 60.0},
        },
        "roll-up-telemetry": {
            "task": "telemetry.roll_up",
            "schedule": 60.0,
            "options": {"expires": 60.0},
        },
        "forget-old-telemetry": {
            "task": "telemetry.forget_old",
            "schedule": 3600.0,
            "options": {"expires": 3600.0},
        },
    },
)
app.autodiscover_tasks()
