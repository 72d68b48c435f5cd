"""Loads the Celery app and the checks with Django, so that tasks have a broker in every process."""

from django.apps import AppConfig


class CommonConfig(AppConfig):
    name = "controlplane.common"
    label = "tidegate_common"

    def ready(self) -> None:
        from controlplane import celery  # noqa: F401
        from controlplane.common import checks  # noqa: F401
