"""The whole-system bench's own parts: its tokenizer, its arrivals, its client."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.system_clients import LENGTHS, Run, Workload
from bench.system_host import (
    BLOCK_STEPS,
    Added,
    Beside,
    LearnedHost,
    Means,
    MeanStep,
    Part,
    added_at,
    evened,
    learn_host,
)
from bench.system_load import Job, Load, Planned, Seen
from bench.system_model import write_text_side
from bench.system_prediction import UNTOLD_S, Times, free_steps, full_steps, lateness, learned, means_of
from bench.system_recording import ONCE, Recording, Steps, read_recording, write_recording
from bench.system_report import apart, median_table
from bench.system_sim import Learned, Way, Ways
from controlplane.gateway.tokenizer import load_text_model
from scheduler_worker.protocol.messages import WorkerInfo
from scheduler_worker.sim.cost import StepCost

EVENT = b'data: {"choices":[{"text":" a"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
PAUSE_S = 0.05


def test_every_token_of_the_made_model_becomes_text_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "eos_token_id": 2}))
    write_text_side(tmp_path, 2000)
    vocabulary = load_text_model(str(tmp_path)).vocabulary

    silent = [token_id for token_id in range(2000) if not vocabulary.detokenizer().push((token_id,))]

    assert (vocabulary.size, silent) == (2000, [])


def test_its_words_are_tokens_of_a_prompt_written_as_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, "eos_token_id": 2}))
    write_text_side(tmp_path, 2000)
    model = load_text_model(str(tmp_path))

    assert model.encode_prompt(model.decode([5, 700, 1999])) == [5, 700, 1999]


def test_the_same_seed_gives_the_same_arrivals_and_another_gives_other_prompts() -> None:
    workload = Workload(LENGTHS["usual"], num_gateways=3)
    first, again, other = (workload.arrivals([(50.0, 4.0)], seed) for seed in (7, 7, 8))

    assert (first == again, {one.index for one in first} & {one.index for one in other}) == (True, set())


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuses a request for one token, streams two to any other."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        if body["max_tokens"] == 1:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}")
            continue
        writer.write(b"HTTP/1.1 200 OK\r\nx-request-id: 12ab-34\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in (EVENT, EVENT + USAGE + b"data: [DONE]\n\n"):
            await asyncio.sleep(PAUSE_S)
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        writer.write(b"0\r\n\r\n")


async def _seen(*lengths: int) -> list[Seen]:
    """What the client sees of requests that follow each other on one connection."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    requests = [Planned(place, 0.15 * place, 0, "high", 3, length) for place, length in enumerate(lengths)]
    job = Job([server.sockets[0].getsockname()[1]], {"high": "key"}, "m", 9, requests, num_connections=1, patience_s=5)
    load = Load(job)
    await load.open_connections()
    await load.run(time.monotonic())
    server.close()
    return load.seen


async def test_the_client_counts_tokens_by_the_usage_and_knows_the_request() -> None:
    (one,) = await _seen(2)

    assert (one.status, one.num_tokens, one.request_id) == (200, 2, "12ab-34")


async def test_the_first_token_is_timed_at_the_first_event_and_the_end_at_the_last() -> None:
    (one,) = await _seen(2)
    first_s, end_s = one.first_s or 0.0, one.end_s or 0.0

    assert min(first_s - one.sent_s, end_s - first_s) >= 0.9 * PAUSE_S


@pytest.mark.parametrize("lengths", [(1, 2), (2, 1, 2)])
async def test_a_refusal_leaves_its_connection_to_the_next_request(lengths: tuple[int, ...]) -> None:
    seen = await _seen(*lengths)

    assert [one.status for one in seen] == [429 if length == 1 else 200 for length in lengths]


def _ways() -> Ways:
    """A request's way tells its part."""
    parts = range(len(ONCE))
    return Ways.of(Learned(4 * part + num, ONCE[part], Way(0.1 * part, 1.0)) for part in parts for num in range(4))


@pytest.mark.parametrize(("share", "part"), [(0.1, 0), (0.4, 0), (0.9, 2), (1.6, 4), (3.0, 4)])
def test_the_way_beside_the_worker_is_that_of_the_rate_learned(share: float, part: int) -> None:
    drawn = _ways().draw([share] * 20)

    assert drawn == [Way(0.1 * part, 1.0)] * 20


def test_between_two_rates_ways_are_drawn_from_both_by_nearness() -> None:
    drawn = _ways().draw([0.85] * 4000)

    assert sum(one.before_s == pytest.approx(0.2) for one in drawn) / len(drawn) == pytest.approx(0.75, abs=0.03)


def test_ways_are_drawn_the_same_for_the_same_seed() -> None:
    ways = Ways.of([Learned(place, 0.4, Way(0.1 * place, 1.0)) for place in range(9)])

    assert ways.draw([0.4] * 50, seed=3) == ways.draw([0.4] * 50, seed=3) != ways.draw([0.4] * 50, seed=4)


def test_a_request_of_the_learning_run_has_its_own_way_and_one_of_its_part_where_that_is_unknown() -> None:
    ways = Ways.of([Learned(7, 0.7, Way(0.3, 1.0)), Learned(8, 0.4, Way(0.4, 1.0))])
    seen = [Seen(8, 1.5, 0.0), Seen(7, 0.5, 0.0), Seen(9, 1.6, 0.0)]

    run = Run("learning", [], seen, 0.0, 2.0, 0.0, shares=[0.7, 0.4])
    assert ways.own(run) == [Way(0.4, 1.0), Way(0.3, 1.0), Way(0.4, 1.0)]


NONE_BESIDE = Beside(0.0, 0.0)


def _part(share: float, least_s: float = 0.006) -> Part:
    return Part(share, Means(0.008, 0.006), least_s)


def _host(beside: Beside, *steps_s: float, share: float = 0.5) -> LearnedHost:
    """Learned at shares 0.5 and 1.0: news of 3 and 1 ms, and these steps."""
    known = {0.5 * (1 + place): Added((0.003, 0.001)[place], step_s) for place, step_s in enumerate(steps_s)}
    return LearnedHost(beside, lambda _: added_at(known, share))


@pytest.mark.parametrize(("share", "mean_s"), [(0.1, 0.003), (0.5, 0.003), (0.75, 0.002), (1.0, 0.001), (2.0, 0.001)])
def test_the_learned_host_goes_with_the_rate_between_two_parts_and_keeps_to_them_beyond(
    share: float, mean_s: float
) -> None:
    host = _host(NONE_BESIDE, 0.0, 0.0, share=share)
    drawn = [host.news_s(0.0) for _ in range(2000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mean_s, rel=0.05)
    assert 1.9 * mean_s < max(drawn) <= 2 * mean_s


@pytest.mark.parametrize(("share", "beside_s"), [(0.5, 0.0018), (0.75, 0.0021), (1.0, 0.0024)])
def test_a_step_is_longer_or_shorter_than_by_the_line_as_it_was_at_that_rate(share: float, beside_s: float) -> None:
    assert _host(Beside(0.001, 1e-5), -0.0002, 0.0004, share=share).beside_s(0.0, 100) == pytest.approx(beside_s)


def test_between_two_learning_runs_the_host_goes_from_one_to_the_other() -> None:
    first, last = Added(0.0, 0.001), Added(0.0, 0.002)
    host = LearnedHost(NONE_BESIDE, lambda now: first.towards(last, now))

    assert [host.beside_s(now, 10) for now in (0.0, 0.25, 1.0)] == pytest.approx([0.001, 0.00125, 0.002])


def test_each_part_of_a_learning_run_is_simulated_with_what_was_learned_of_it() -> None:
    """Parts of one second, falling; of the second one twice as long steps were measured."""
    parts = [Part(share, Means(0.0, token_s), 0.001) for share, token_s in ((1.6, 0.002), (1.2, 0.004))]
    learned = learn_host(NONE_BESIDE, parts, int, lambda host: [Means(0.0, host.added(at).step_s) for at in (0.5, 1.5)])

    assert learned == {1.6: pytest.approx((0.0, 0.002)), 1.2: pytest.approx((0.0, 0.004))}


def test_the_host_is_late_for_several_steps_at_a_time() -> None:
    host = _host(Beside(0.001, 0.0, 9.0), 0.0)
    blocks = [{host.beside_s(0.0, 10) for _ in range(BLOCK_STEPS)} for _ in range(40)]

    assert ({len(block) for block in blocks}, len(set().union(*blocks))) == ({1}, 40)


@pytest.mark.parametrize("num_steps", [20, 80])
def test_what_lies_beside_the_device_is_learned_with_its_variance_from_messages_of_many_steps(num_steps: int) -> None:
    """Of a host that is late for blocks of steps, as the learned one is."""
    known = Beside(0.0002, 4e-6, 6.0)
    host = _host(known, 0.0)
    rows = [10 + place % 200 for place in range(3000)]
    steps = [
        MeanStep(num_steps, one, sum(host.beside_s(0.0, one) for _ in range(num_steps)) / num_steps) for one in rows
    ]
    found = Beside.fit([steps])

    assert (found.mean_s(20), found.mean_s(200), found.variance) == pytest.approx((0.00028, 0.001, 6.0), rel=0.15)


def test_a_host_that_drifts_hardly_varies_from_step_to_step() -> None:
    """1 to 3 ms beside the device, rising through the first part, then 5 to 7: 4 on average."""
    parts = [[MeanStep(50, 10.0, first_s + 1e-5 * place) for place in range(201)] for first_s in (0.001, 0.005)]

    assert Beside.fit(parts) == Beside(pytest.approx(0.004), 0.0, pytest.approx(50 * 1e-5**2 / 2 / 0.004**2))


@pytest.mark.parametrize(
    ("besides", "line"),
    [
        ((0.003, 0.002, 0.001), (0.002, 0.0)),  # falls with the rows
        ((0.0, 0.0003, 0.003), (0.0, 6.9e-5)),  # would be below zero at none
        ((-0.001, 0.0, 0.0005), (0.0, 0.0)),  # the device takes it all
    ],
)
def test_what_lies_beside_neither_falls_nor_is_below_zero(
    besides: tuple[float, ...], line: tuple[float, float]
) -> None:
    found = Beside.fit([[MeanStep(50, 10.0 * (place + 1), one) for place, one in enumerate(besides)]])

    assert (found.base_s, found.row_s) == pytest.approx(line, abs=1e-5)


@pytest.mark.parametrize("echo", [1.0, 4.0])
def test_what_is_learned_is_that_with_which_a_simulation_has_the_measured_means(echo: float) -> None:
    """The simulation here adds 5 ms to each way, and steps of 4 ms, of which a longer one comes back `echo` times."""

    def simulated(host: LearnedHost) -> list[Means]:
        known = host.added(0.0)
        return [Means(0.005 + known.news_s, 0.004 + echo * known.step_s)]

    learned = learn_host(NONE_BESIDE, [_part(0.9, 0.006 / echo)], lambda _: 0, simulated)[0.9]

    assert learned == pytest.approx(Added(0.003, 0.002 / echo), abs=1e-5)


def test_a_round_whose_queue_grows_by_chance_does_not_move_what_is_learned() -> None:
    chances = cycle((0.0, 0.0001, 0.003, -0.0001))

    def simulated(host: LearnedHost) -> list[Means]:
        known = host.added(0.0)
        return [Means(0.005 + known.news_s, 0.004 + known.step_s + next(chances))]

    learned = learn_host(NONE_BESIDE, [_part(0.9)], lambda _: 0, simulated)[0.9]

    assert learned.step_s == pytest.approx(0.002, abs=0.00015)


def test_at_most_half_of_a_step_without_rows_is_taken_away() -> None:
    def simulated(host: LearnedHost) -> list[Means]:
        return [Means(0.008, 0.1)]

    learned = learn_host(NONE_BESIDE, [_part(0.9, 0.002)], lambda _: 0, simulated)[0.9]

    assert learned.step_s == -0.001


@pytest.mark.parametrize(("share", "echo"), [(0.9, 3.0), (1.2, 1.0)])
def test_a_longer_step_comes_back_as_more_rows_while_slots_are_free(share: float, echo: float) -> None:
    """Steps without rows take 2 of 6 ms."""
    assert _part(share, least_s=0.002).echo == pytest.approx(echo)


def _rising(end_s: float) -> Run:
    """A learning run whose shares rise."""
    return Run("learning", [], [], 0.0, end_s, 9.0, shares=ONCE)


def _times(sent_s: float, before_s: float, first_s: float, **others: Any) -> Times:
    known = {"number": 0, "class_id": "high", "after_s": 0.0, "rest_s": 0.1, "num_tokens": 11}
    return Times(sent_s=sent_s, before_s=before_s, first_s=first_s, **(known | others))


def test_lateness_is_learned_within_parts_and_where_slots_are_free() -> None:
    """Half of it comes back in each part; that parts lie higher, and what full slots do, tells nothing."""
    times = [
        _times(part + 0.9, before_s, 0.1 * part + (0.5 if part < 3 else -2.0) * before_s + 0.02 * part)
        for part in range(5)
        for before_s in (0.004, 0.005 + 0.002 * part, 0.02)
    ]

    assert lateness(times, _rising(5.0)) == pytest.approx(0.5)


def test_news_of_a_request_that_was_late_before_come_later_by_its_share_of_that_while_slots_are_free() -> None:
    """Queued after 10 and 20 ms, then 100 and 105 ms until the first token: half of 5 ms around the mean each."""
    recording = _recording()
    sent = [(place, at_s, late_s) for place, at_s in enumerate((1.0, 41.0)) for late_s in (0.01, 0.02)]
    recording.learning = [run := _rising(50.0)]
    for number, (_, at_s, late_s) in enumerate(sent):
        run.requests.append(Planned(number, at_s, 0, "high", 3, 2))
        run.seen.append(Seen(number, at_s, 0.0, 200, at_s + 0.2, at_s + 0.3, 2, f"r{number}"))
        recording.queued[f"r{number}"] = [late_s - UNTOLD_S, 0.0]
        recording.parts[f"r{number}"] = [late_s + 0.08, 0.01, 0.005 + late_s / 2, 0.2]

    assert [one.way.late_s for one in learned(recording, run)] == pytest.approx([-0.0025, 0.0025, 0.0, 0.0])

    run.warm_s = 2.0
    assert [one.share for one in learned(recording, run)] == [1.6, 1.6]


def test_nothing_is_learned_while_a_run_is_not_warm_or_a_part_not_settled() -> None:
    run = Run("learning", [], [], 3.0, 10.0, 9.0, shares=[0.7, 0.9])

    assert [run.part(0, 0.75), run.part(1, 0.75), run.part(1)] == [(3.0, 5.0), (5.75, 10.0), (5.0, 10.0)]


def test_means_are_of_urgent_first_tokens_and_of_answers_that_lie_in_their_part() -> None:
    """Parts of 10 s. An answer begins in the first part's unsettled time, one ends in the second part, one waits."""
    times = [
        _times(0.1, 0.0, 9.0, rest_s=9.0),
        _times(9.0, 0.0, 0.3, rest_s=5.0),
        _times(5.0, 0.0, 7.0, class_id="low", rest_s=9.0),
        _times(5.0, 0.0, 0.1, rest_s=0.2, num_tokens=21),
        _times(5.0, 0.0, 0.9, class_id="low", rest_s=0.8, num_tokens=81),
    ]

    assert means_of(times, _rising(50.0))[0] == pytest.approx(Means(0.2, 0.01))


def test_a_step_takes_beside_the_device_what_rows_prompts_context_and_pairs_do_not() -> None:
    """A message of 3 steps in 0.25 s, whose 5 tokens are 4 of decoding rows and one after a prompt of 3 tokens, with
    two pairs for each."""
    cost = StepCost(base_s=0.001, row_s=1e-3, prefill_token_s=1e-3, kv_token_s=1e-3, attention_pair_s=1e-4)
    ((step,),) = free_steps(_learning_recording(), cost)

    assert step == pytest.approx((3, 4 / 3, 0.25 / 3 - 0.001 - 0.001 - 0.001 - 0.008 - 0.0002))


def test_messages_from_before_the_learning_run_or_from_when_slots_were_full_do_not_tell_of_the_line() -> None:
    recording = _learning_recording()
    (message,) = recording.steps["learning"]
    recording.steps["learning"] = [msgspec.structs.replace(message, at=at) for at in (9.2, 9.9, 10.1)]

    assert free_steps(recording, StepCost()) == [[]]


def test_steps_with_full_slots_are_those_of_rates_above_the_capacity_and_of_a_lone_run_also_its() -> None:
    """Parts of 10 s: at 5 s 1.6 of the capacity, at 25 s 1.2. What is not settled, or warming, does not count."""
    recording = _recording()
    (message,) = recording.steps["load"]
    recording.capacity = msgspec.structs.replace(recording.capacity, name="capacity", warm_s=5.0, end_s=15.0)
    run = Run("learning 2", recording.capacity.requests, [], 0.0, 30.0, 9.0, shares=[1.6, 0.9, 1.2])

    def messages(*instants: tuple[float, int]) -> list[Steps]:
        return [msgspec.structs.replace(message, at=9.0 + at_s, num_steps=num) for at_s, num in instants]

    recording.steps = {
        "capacity": messages((4.0, 9), (8.0, 1)),
        "learning 2": messages((5.0, 3), (15.0, 9), (20.5, 9), (25.0, 2)),
    }
    known = {1.0: [1], 1.2: [2], 1.6: [3]}

    for num_runs in (1, 2):  # the capacity run's count where one run is all
        recording.learning = num_runs * [run]
        found = full_steps(recording, run, StepCost()).items()
        assert {share: [one.num_steps for one in steps] for share, steps in found} == known
        known.pop(1.0, None)


def test_steps_with_full_slots_take_at_each_rate_what_they_took_in_all_such_messages() -> None:
    """By messages: 1 ms beyond the line at 1.0, 3 ms in as many steps at the capacity. The rate below stays."""
    line = Beside(0.001, 1e-5)
    full = {1.0: [MeanStep(50, 100, 0.003)], 3.0: [MeanStep(20, 200, 0.006), MeanStep(30, 200, 0.006)]}
    learned = evened({0.5: Added(0.003, 0.0005), 1.0: Added(0.001, 0.0011)}, line, full)

    assert learned == {0.5: Added(0.003, 0.0005), 1.0: pytest.approx((0.001, 0.0021))}


def _learning_recording() -> Recording:
    recording = _recording()
    (run,) = recording.learning
    recording.learning = [msgspec.structs.replace(run, name="learning", shares=[0.7, 1.2])]
    recording.steps = {"learning": recording.steps["load"]}
    return recording


def _recording() -> Recording:
    info = WorkerInfo(
        worker="w", pool="p", model="m", started_at=1.0, num_slots=2, num_blocks=4, block_size=16, max_model_len=64
    )
    planned, seen = Planned(1, 0.5, 0, "high", 3, 2), Seen(1, 0.5, 0.0, 200, 0.6, 0.7, 2, "12ab")
    run = Run("load", [planned], [seen], 0.0, 1.0, 9.0, shares=[0.85])
    steps = Steps(
        at=9.5, interval_s=0.25, num_steps=3, num_generated=5, num_prompt=3, num_running=2, num_slots=2, batch_limit=2,
        num_context=8, num_prompt_running=6, num_waiting={"high": 1}, step_p50_s=0.01, step_p99_s=None,
        overhead_p50_s=None,
    )  # fmt: skip
    return Recording(b"{}", 2, 8, info, [], run, [run], {0.85: run}, {"12ab": [0.1, None]}, {}, {"load": [steps]})


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_recording(tmp_path / "rec", _recording())

    assert read_recording(tmp_path / "rec") == _recording()


def test_a_recording_is_compressed(tmp_path: Path) -> None:
    recording = _recording()
    recording.parts = {f"request-{place}": [0.25, 0.5, 0.75, None] for place in range(1000)}
    write_recording(tmp_path / "rec", recording)

    assert (tmp_path / "rec").stat().st_size < len(msgspec.msgpack.encode(recording)) / 2


def test_a_recording_that_is_not_compressed_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "rec").write_bytes(msgspec.msgpack.encode(_recording()))

    assert read_recording(tmp_path / "rec") == _recording()


def test_a_recording_of_one_learning_run_is_read_with_the_shares_it_had(tmp_path: Path) -> None:
    document = msgspec.to_builtins(_recording(), builtin_types=(bytes,))
    (document["learning"],) = document["learning"]
    del document["learning"]["shares"]
    (tmp_path / "rec").write_bytes(msgspec.msgpack.encode(document))

    (run,) = read_recording(tmp_path / "rec").learning

    assert (run.shares, run.seen) == ([0.4, 0.7, 0.9, 1.2, 1.6], _recording().learning[0].seen)


def test_two_predictions_lie_apart_by_the_median_of_their_percentiles() -> None:
    one = {"high": {"ttft_p50": 10.0, "ttft_p99": 20.0, "tpot_p50": 4.0, "refused": 1.0, "requests": 90.0}}
    other = {"high": {"ttft_p50": 11.0, "ttft_p99": 16.0, "tpot_p50": 4.2, "refused": 50.0, "requests": 90.0}}

    assert apart(one, other) == pytest.approx(10.0)


def test_of_several_predictions_each_figure_is_the_median() -> None:
    tables = [{"high": {"ttft_p99": value, "tpot_p99": -value}} for value in (1.0, 9.0, 2.0)]

    assert median_table(tables) == {"high": {"ttft_p99": 2.0, "tpot_p99": -2.0}}
