"""Valkey's threads follow the machine's cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from controlplane.embedded import EmbeddedServices
from controlplane.embedded.valkey import num_io_threads


@pytest.mark.parametrize(("num_cpus", "num_threads"), [(1, 1), (2, 1), (8, 2), (16, 4), (128, 4)])
def test_few_cores_are_left_to_others(num_cpus: int, num_threads: int) -> None:
    assert num_io_threads(num_cpus) == num_threads


def test_valkey_takes_the_threads_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    tmp_path.chmod(0o755)
    services = EmbeddedServices(tmp_path / "data", durable=False)
    with services, redis.Redis.from_url(services.redis_url) as client:
        config = client.config_get("io-threads")
    services.remove_data()

    assert config == {"io-threads": "4"}
