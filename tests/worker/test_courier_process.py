"""The courier's process and its worker live and die together."""

from __future__ import annotations

import signal

import psutil

from tests.worker.fake_executor import continuation
from tests.worker.fleet import Fleet, WorkerProcess, wait_until
from tests.worker.test_processes import prompt


def courier_of(worker: WorkerProcess) -> psutil.Process:
    (child,) = psutil.Process(worker.process.pid).children()
    assert "courier_process" in " ".join(child.cmdline())
    return child


def test_the_courier_ends_with_a_killed_worker(fleet: Fleet) -> None:
    worker = fleet.start("w1")
    courier = courier_of(worker)
    worker.signal(signal.SIGKILL)
    wait_until(lambda: not courier.is_running(), "the courier's end")


def test_signals_to_the_whole_group_leave_the_courier_to_its_worker(fleet: Fleet) -> None:
    worker = fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=400)
    fleet.client.wait_for_tokens("a", 3)
    courier = courier_of(worker)
    courier.send_signal(signal.SIGTERM)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert not courier.is_running()
    fleet.client.read()
    assert fleet.client.outputs["a"].attempt == 1


def test_a_worker_whose_courier_died_ends_and_others_go_on(fleet: Fleet) -> None:
    worker = fleet.start("w1", step_s=0.02)
    fleet.client.send("a", prompt(1), max_tokens=100)
    fleet.client.wait_for_tokens("a", 3)
    courier_of(worker).kill()
    assert worker.wait() == 1
    assert "the courier failed: its process ended with status -9" in worker.log.read_text()
    fleet.start("w2")
    fleet.client.wait_for_end()
    assert fleet.client.outputs["a"].tokens == continuation(prompt(1), 100)
    assert fleet.client.faults() == {}


def test_the_redis_url_is_on_no_command_line(fleet: Fleet) -> None:
    courier = courier_of(fleet.start("w1"))
    assert "redis://" not in " ".join(courier.cmdline())
