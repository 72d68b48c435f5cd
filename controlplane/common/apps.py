"""Loads the Celery app with Django, so that `shared_task`s have a broker in every process; registers checks."""

from django.apps import AppConfig


class CommonConfig(AppConfig):
    name = "controlplane.common"
    label = "tidegate_common"

    def ready(self) -> None:
        from controlplane import celery  # noqa: F401
        from controlplane.common import checks  # noqa: F401
