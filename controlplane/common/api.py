"""Signing in and out."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import authenticate, login, logout
from django.middleware.csrf import get_token
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from controlplane.common.authentication import OperatorSession
from controlplane.common.errors import NotSignedIn
from controlplane.common.permissions import is_operator, may_operate
from controlplane.common.serializers import Strict
from controlplane.common.throttling import check_failures, count_failure, remember_success


class SignInSerializer(Strict):
    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=4096, trim_whitespace=False)


class SessionSerializer(serializers.Serializer):
    username = serializers.CharField(help_text="Empty while nobody is signed in.")
    name = serializers.CharField()
    may_operate = serializers.BooleanField(
        help_text="Whether this account may change policies and drain workers, or only look."
    )
    csrf_token = serializers.CharField(help_text="To be sent as X-CSRFToken with every write.")


class SessionView(APIView):
    """Who is signed in, and the CSRF token that every write needs."""

    permission_classes = [AllowAny]

    @extend_schema(operation_id="session_read", responses=SessionSerializer)
    def get(self, request: Request) -> Response:
        """Who am I? Also sets the CSRF cookie."""
        return Response(_session(request))

    @extend_schema(operation_id="session_create", request=SignInSerializer, responses=SessionSerializer)
    def post(self, request: Request) -> Response:
        """Sign in."""
        OperatorSession().enforce_csrf(request)
        body = SignInSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        _sign_in(request, **body.validated_data)
        return Response(_session(request))

    @extend_schema(operation_id="session_delete", request=None, responses=SessionSerializer)
    def delete(self, request: Request) -> Response:
        """Sign out. Harmless when nobody is signed in."""
        logout(request._request)
        return Response(_session(request))


def _sign_in(request: Request, username: str, password: str) -> None:
    check_failures(request, username)
    user = authenticate(request._request, username=username, password=password)
    if user is None or not is_operator(user):
        count_failure(request, username)
        raise NotSignedIn("The name or the password is wrong.")
    remember_success(request, username)
    login(request._request, user)


def _session(request: Request) -> dict[str, Any]:
    user = request._request.user
    signed_in = is_operator(user)
    return {
        "username": user.get_username() if signed_in else "",
        "name": (user.get_full_name() or user.get_username()) if signed_in else "",
        "may_operate": signed_in and may_operate(user),
        "csrf_token": get_token(request._request),
    }
