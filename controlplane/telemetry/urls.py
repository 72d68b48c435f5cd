"""Routes of telemetry, from the root."""

from django.urls import path

from controlplane.telemetry.api import HistoryView, WaitingView
from controlplane.telemetry.metrics import metrics

urlpatterns = [
    path("api/v1/telemetry/history", HistoryView.as_view()),
    path("api/v1/telemetry/waiting", WaitingView.as_view()),
    path("metrics", metrics),
]
