"""Django's routes: the operators' REST API, the admin, and the built frontend for everything that people open."""

from django.contrib import admin
from django.urls import path

urlpatterns = [
    path("admin/", admin.site.urls),
]
