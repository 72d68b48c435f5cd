"""The courier's process and its worker live and die together."""

from __future__ import annotations

import signal
import socket

import msgspec
import psutil
import pytest

from scheduler_worker.protocol.messages import Header, PolicyAnnouncement
from scheduler_worker.protocol.scripts import Change, ChangeOp
from scheduler_worker.worker.courier_process import Channel, Failure, Report
from scheduler_worker.worker.inbox import ClaimsLost, PolicyNews, QueueChanged, QueueMirrored
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


def test_a_channel_yields_what_is_whole_and_keeps_the_rest() -> None:
    """Cut anywhere: nothing is lost, nothing comes early, and what came before the end is read before it."""
    ours, theirs = socket.socketpair()
    sink, source = socket.socketpair()
    reading, writing = Channel(ours), Channel(sink)
    told = [Failure("courier", "x" * size) for size in (0, 1, 300, 70_000)]
    for one in told:
        writing.send(one)
    data = source.recv(1 << 20)
    decoder, found = msgspec.msgpack.Decoder(Report), []
    for begin in range(0, len(data), 997):
        assert len(found) == num_whole(data[:begin])
        theirs.sendall(data[begin : begin + 997])
        found += [decoder.decode(one) for one in reading.read()]
    writing.send(told[0])
    theirs.sendall(source.recv(100))
    theirs.close()
    with pytest.raises(EOFError):
        found.extend(decoder.decode(one) for one in reading.read())

    assert found == [*told, told[0]]


def num_whole(data: bytes) -> int:
    number = 0
    while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "little")):
        data, number = data[end:], number + 1
    return number


def test_news_of_the_queue_cross_a_channel_as_they_are() -> None:
    ours, theirs = socket.socketpair()
    reading, writing = Channel(ours), Channel(theirs)
    header = Header(
        request_id="a", class_id="high", tenant="t", gateway="g", arrived_at=1.0, num_prompt_tokens=3, max_tokens=4
    )
    policy = PolicyAnnouncement(version=2, document="{}", published_at=1.0)
    told = [
        QueueChanged((Change(ChangeOp.ADD, "a", header=header), Change(ChangeOp.CLAIMED, "b", worker="w2"))),
        QueueMirrored((header,), policy),
        QueueMirrored((), None),
        PolicyNews(policy),
        ClaimsLost({"a": 1}),
    ]
    for one in told:
        writing.send(one)

    assert [msgspec.msgpack.Decoder(Report).decode(one) for one in reading.read()] == told
