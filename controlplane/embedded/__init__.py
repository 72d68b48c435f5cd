"""Postgres and Valkey from wheels, supervised: for the demo, for development and for the tests."""

from .errors import DataDirInUseError, EmbeddedServiceError
from .services import EmbeddedServices

__all__ = ["DataDirInUseError", "EmbeddedServiceError", "EmbeddedServices"]
