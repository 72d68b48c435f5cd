"""The same workload gives the same log, byte for byte: in this process, in another, whatever the hash seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.core.worlds import World, a_capacity

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden_log.txt")


def log_of(depth: int, num_requests: int = 120) -> str:
    """Every event, plan and end of a mixed workload with cancels, failures and shortages, one a line."""
    random = Random(2026)
    world = World(
        capacity=a_capacity(max_in_flight_steps=depth, num_swap_blocks=16, num_blocks=48), checks=False
    )
    for number in range(num_requests):
        world.add(
            f"r{number}",
            random.choice(("high", "medium", "low")),
            prompt=random.randint(1, 200),
            max_tokens=random.randint(1, 60),
            length=random.randint(1, 60),
            tenant=random.choice("abcde"),
            block_hashes=tuple(range(random.choice((0, 3, 6)))),
        )
        world.step()
        if number % 17 == 0:
            world.take(world.scheduler.cancel(f"r{number // 2}", world.now))
        if number % 23 == 0 and world.launched:
            world.land(failed=[world.launched[0].chunks[0].seq_id])
    world.run()
    lines = [repr(event) for event in world.events]
    lines += [repr(plan) for plan in world.plans]
    lines += [repr(one) for one in world.finished.values()]
    return "\n".join(lines)


def digest_of(depth: int) -> str:
    return hashlib.sha256(log_of(depth).encode()).hexdigest()


@pytest.mark.parametrize("depth", [1, 2])
def test_two_runs_in_one_process_give_the_same_log(depth: int) -> None:
    assert log_of(depth) == log_of(depth)


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_other_processes_with_other_hash_seeds_give_the_same_log(hash_seed: str) -> None:
    code = "from tests.core.test_determinism import digest_of; print(digest_of(1), digest_of(2))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout.split() == [digest_of(1), digest_of(2)]


@pytest.mark.parametrize("depth", [1, 2])
def test_the_order_of_starts_is_the_one_on_record(depth: int) -> None:
    """Times are left out: they may differ in the last bit between platforms. A change of order is a decision:
    rewrite the record with `python -m tests.core.test_determinism` and say why."""
    assert starts_of(depth) == GOLDEN.read_text().splitlines()[depth - 1].split()


def starts_of(depth: int) -> list[str]:
    """Sequence ids of the starts and returns, in order."""
    lines = log_of(depth, num_requests=60).splitlines()
    decided = [one for one in lines if one.startswith("Event") and ("SCHEDULED" in one or "RESUMED" in one)]
    return [one.split("seq_id='")[1].split("'")[0] for one in decided]


if __name__ == "__main__":
    GOLDEN.write_text("".join(" ".join(starts_of(depth)) + "\n" for depth in (1, 2)))
