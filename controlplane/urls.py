"""Django's routes: the REST API, the admin, and the built frontend for everything that people open."""

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerSplitView

from controlplane.common import views
from controlplane.common.api import SessionView
from controlplane.fleet.api import DrainView, WorkersView
from controlplane.inference.api import RequestsView, RequestView
from controlplane.policies.api import (
    ActivePolicyView,
    PoliciesView,
    PolicySchemaView,
    PolicyView,
    RollBackView,
    ValidatePolicyView,
)
from controlplane.policies.trial_api import TrafficView, TrialsView, TrialView
from controlplane.tenants.api import PlaygroundKeyView

api = [
    path("session", SessionView.as_view()),
    path("policies", PoliciesView.as_view()),
    path("policies/active", ActivePolicyView.as_view()),
    path("policies/schema", PolicySchemaView.as_view()),
    path("policies/validate", ValidatePolicyView.as_view()),
    path("policies/traffic", TrafficView.as_view()),
    path("policies/trials", TrialsView.as_view()),
    path("policies/trials/<int:trial>", TrialView.as_view()),
    path("policies/<int:version>", PolicyView.as_view()),
    path("policies/<int:version>/rollback", RollBackView.as_view()),
    path("fleet/workers", WorkersView.as_view()),
    path("fleet/workers/<str:worker>/drain", DrainView.as_view()),
    path("playground/key", PlaygroundKeyView.as_view()),
    path("requests", RequestsView.as_view()),
    path("requests/<uuid:request_id>", RequestView.as_view()),
]

urlpatterns = [
    path("api/v1/", include(api)),
    path("api/schema", SpectacularJSONAPIView.as_view(), name="schema"),
    path("api/docs", SpectacularSwaggerSplitView.as_view(url_name="schema")),
    path("", include("controlplane.telemetry.urls")),
    path("admin/login/", RedirectView.as_view(url="/sign-in")),  # one door, which slows guessing down
    path("admin/", admin.site.urls),
    re_path(r"^(?:api|v1|ws)(?:/|$)", csrf_exempt(views.no_such_route)),
    re_path(r"^(?:(?:live|policies|playground|sign-in)(?:/.*)?)?$", views.frontend),
]

handler400 = "controlplane.common.views.bad_request"
handler403 = "controlplane.common.views.permission_denied"
handler404 = "controlplane.common.views.not_found"
handler500 = "controlplane.common.views.server_error"
