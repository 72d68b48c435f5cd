"""The settings: read once, typed, loud."""

from __future__ import annotations

import pytest

from controlplane.common.environment import SettingsError, database_options, read

REQUIRED = {
    "TIDEGATE_DATABASE_URL": "postgresql://tidegate:secret@db:5433/tidegate",
    "TIDEGATE_REDIS_URL": "redis://:secret@redis:6379/0",
    "TIDEGATE_SECRET_KEY": "s" * 40,
}


def test_an_empty_environment_names_every_required_setting_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        read({})
    assert all(name in str(error.value) for name in REQUIRED)


def test_the_required_settings_suffice() -> None:
    assert read(REQUIRED).pool == "default"


def test_an_empty_value_means_the_default() -> None:
    assert read({**REQUIRED, "TIDEGATE_POOL": ""}).pool == "default"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("TIDEGATE_DATABASE_URL", "mysql://db/x", "postgresql://user:password@host:port/name"),
        ("TIDEGATE_REDIS_URL", "localhost:6379", "redis://:password@host:port/0"),
        ("TIDEGATE_SECRET_KEY", "short", "secrets.token_urlsafe"),
        ("TIDEGATE_POOL", "My Pool", "lower-case letters"),
        ("TIDEGATE_DEBUG", "maybe", "true"),
        ("TIDEGATE_CSRF_ORIGINS", "tidegate.example", "https://tidegate.example"),
        ("TIDEGATE_LOG_LEVEL", "chatty", "WARNING"),
        ("TIDEGATE_MAX_BODY_BYTES", "1k", "whole number"),
        ("TIDEGATE_DISCONNECT_GRACE_S", "-1", "seconds"),
        ("TIDEGATE_DISCONNECT_GRACE_S", "nan", "seconds"),
        ("TIDEGATE_DATABASE_CONNECTIONS", "0", "from 1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_remedy(name: str, value: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match=name) as error:
        read({**REQUIRED, name: value})
    assert remedy in str(error.value)


def test_an_error_does_not_show_the_secret() -> None:
    with pytest.raises(SettingsError) as error:
        read({**REQUIRED, "TIDEGATE_SECRET_KEY": "hunter2"})
    assert "hunter2" not in str(error.value)


def test_a_password_in_the_database_url_may_be_percent_encoded() -> None:
    options = database_options("postgresql://me:p%40ss@db:5433/tidegate", 4)
    assert (options["PASSWORD"], options["PORT"]) == ("p@ss", "5433")
