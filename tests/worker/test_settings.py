"""The worker's environment: typed, frozen, loud."""

from __future__ import annotations

import pytest

from scheduler_worker.worker.settings import SettingsError, read

GIVEN = {"TIDEGATE_REDIS_URL": "redis://:pw@127.0.0.1:6379/0", "TIDEGATE_MODEL": "/models/one"}


def test_url_and_model_are_enough() -> None:
    settings = read(GIVEN)
    assert (settings.pool, settings.num_slots, settings.kv_bytes) == ("default", 32, None)


def test_each_process_has_a_name_of_its_own_by_default() -> None:
    assert read(GIVEN).worker_id.rpartition("-")[2].isdecimal()


def test_every_mistake_is_named_with_its_remedy() -> None:
    with pytest.raises(SettingsError) as caught:
        read({"TIDEGATE_POOL": "Über", "TIDEGATE_NUM_SLOTS": "many", "TIDEGATE_MODEL": "x"})
    text = str(caught.value)
    assert "TIDEGATE_REDIS_URL: it is not set" in text
    assert "TIDEGATE_POOL: use lower-case letters" in text
    assert "TIDEGATE_NUM_SLOTS: use a whole number from 1 to 65536" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DTYPE", "float8"),
        ("ATTENTION", "magic"),
        ("KV_FRACTION", "1.5"),
        ("KV_FRACTION", "nan"),
        ("THREADS", "-1"),
        ("REDIS_URL", "http://127.0.0.1"),
        ("WORKER_ID", "a b"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_value_out_of_range_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"TIDEGATE_{name}"):
        read(GIVEN | {f"TIDEGATE_{name}": value})


def test_the_engine_gets_what_the_environment_says() -> None:
    environ = GIVEN | {"TIDEGATE_KV_BYTES": "1048576", "TIDEGATE_DTYPE": "FLOAT32", "TIDEGATE_THREADS": "2"}
    engine = read(environ).engine()
    given = (engine.model, engine.kv_bytes, engine.dtype, engine.threads)
    assert given == ("/models/one", 1 << 20, "float32", 2)
