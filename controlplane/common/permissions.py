"""Who may do what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser
    from rest_framework.views import APIView


def is_operator(user: object) -> bool:
    """Whether an account belongs to the people who run the fleet."""
    return bool(getattr(user, "is_active", False) and getattr(user, "is_staff", False))


class IsOperator(BasePermission):
    """Signed in, active, and staff."""

    message = "This needs an operator's account."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return is_operator(request.user)


def may_operate(user: AbstractUser | AnonymousUser) -> bool:
    """Whether an account may change policies, and what the fleet does."""
    return is_operator(user) and user.has_perm("policies.publish_policy")


class MayPublish(IsOperator):
    """An operator with the right to change policies."""

    message = "Your account may read policies but not publish them; it lacks the permission “publish_policy”."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return may_operate(request.user)


class MayOperate(MayPublish):
    """The same right lets an operator change what the fleet does; what is said without it differs."""

    message = (
        "Your account may look at the fleet but not change it; it lacks the permission “publish_policy”."
    )
