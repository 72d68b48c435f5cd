"""The scripts on a real Valkey: each test is one promise that gateway, worker and control plane build on."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from typing import TypeVar

import msgspec
import pytest
import redis

from controlplane.common.redis import run_sync
from scheduler_worker.protocol import keys, scripts
from scheduler_worker.protocol.messages import (
    Frame,
    FrameRow,
    Header,
    Payload,
    PolicyAnnouncement,
    Requeued,
    SamplingParams,
    decode,
)
from scheduler_worker.protocol.scripts import CancelOutcome, ChangeOp, ClassReserve, Published

T = TypeVar("T")
POOL = "test"
BIG_HASH = 2**63 - 12345


class Pool:
    """A connection with the verbs bound to one pool."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def run(self, call: scripts.Call[T]) -> T:
        return run_sync(self.client, call)

    def enqueue(self, request_id: str, **fields: object) -> int | None:
        return self.run(scripts.enqueue(POOL, header(request_id, **fields), payload(request_id)))

    def claim(self, worker: str, *request_ids: str, lease_s: float = 5.0) -> tuple[scripts.Claimed, ...]:
        return self.run(scripts.claim(POOL, worker, request_ids, lease_s))

    def publish(self, worker: str, *rows: FrameRow, gateway: str = "g1") -> Published:
        frame = Frame(worker=worker, step=1, published_at=1.0, rows=rows)
        return self.run(scripts.publish(POOL, worker, 5.0, {gateway: frame}))

    def output(self, gateway: str = "g1") -> list[Frame | Requeued]:
        entries = self.client.xrange(keys.OUTPUT.of(POOL, gateway))
        return [scripts.read_output(fields) for _, fields in entries]

    def changes(self) -> list[scripts.Change]:
        return [scripts.read_change(fields) for _, fields in self.client.xrange(keys.CHANGES.of(POOL))]

    def load(self) -> dict[str, ClassReserve]:
        return scripts.read_class_load(self.client.hgetall(keys.CLASS_LOAD.of(POOL)))

    def tokens(self, request_id: str) -> tuple[int, ...]:
        data = self.client.get(keys.TOKENS.of(POOL, request_id)) or b""
        return struct.unpack(f"<{len(data) // 4}I", data)

    def waiting(self) -> list[str]:
        return [one.request_id for one in self.run(scripts.mirror(POOL)).headers]


def header(request_id: str, **fields: object) -> Header:
    made: dict[str, object] = {
        "request_id": request_id,
        "class_id": "high",
        "tenant": "acme",
        "gateway": "g1",
        "arrived_at": 1_700_000_000.25,
        "num_prompt_tokens": 3,
        "max_tokens": 8,
        "block_hashes": (BIG_HASH, 7),
        "cost": 12.5,
    }
    return Header(**(made | fields))  # type: ignore[arg-type]


def payload(request_id: str) -> Payload:
    return Payload(
        request_id=request_id, token_ids=struct.pack("<3I", 1, 2, 3), sampling=SamplingParams(max_tokens=8)
    )


def row(request_id: str, offset: int, *tokens: int, finish: str = "", attempt: int = 0) -> FrameRow:
    return FrameRow(request_id=request_id, attempt=attempt, offset=offset, token_ids=tokens, finish=finish)


@pytest.fixture
def pool(redis_url: str) -> Iterator[Pool]:
    with redis.Redis.from_url(redis_url) as client:
        yield Pool(client)


class TestReserve:
    def test_it_accepts_below_the_limit_and_reports_the_load_before_it(self, pool: Pool) -> None:
        pool.enqueue("a", cost=10.0)
        reply = pool.run(scripts.reserve(POOL, "b", "high", 2.5, queue_limit=2))
        assert (reply.accepted, reply.load) == (True, {"high": ClassReserve(1, 10.0)})

    def test_it_tells_how_many_requests_workers_hold(self, pool: Pool) -> None:
        for request_id in ("a", "b", "c"):
            pool.enqueue(request_id)
        pool.claim("w1", "a", "b")
        assert pool.run(scripts.reserve(POOL, "d", "high", 1.0, queue_limit=9)).num_claimed == 2

    def test_it_refuses_at_the_limit(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1))
        assert not pool.run(scripts.reserve(POOL, "b", "high", 1.0, queue_limit=1)).accepted

    def test_a_refusal_reserves_nothing(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1))
        pool.run(scripts.reserve(POOL, "b", "high", 1.0, queue_limit=1))
        assert pool.load() == {"high": ClassReserve(1, 1.0)}

    def test_the_same_id_reserves_once(self, pool: Pool) -> None:
        for _ in range(2):
            assert pool.run(scripts.reserve(POOL, "a", "high", 4.0, queue_limit=1)).accepted
        assert pool.load() == {"high": ClassReserve(1, 4.0)}

    def test_limits_are_per_class(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1))
        assert pool.run(scripts.reserve(POOL, "b", "low", 1.0, queue_limit=1)).accepted

    def test_an_expired_reservation_frees_its_room(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1))
        pool.client.zadd(keys.RESERVATION_ENDS.of(POOL), {"a": time.time() - 1})
        assert pool.run(scripts.reserve(POOL, "b", "high", 1.0, queue_limit=1)).accepted

    def test_its_time_is_redis_time(self, pool: Pool) -> None:
        seconds, micros = pool.client.time()
        at = pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1)).at
        assert 0 <= at - (seconds + micros / 1e6) < 5

    def test_given_back_it_leaves_no_load(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.5, queue_limit=1))
        assert pool.run(scripts.unreserve(POOL, "a"))
        assert pool.load() == {}

    def test_giving_back_what_is_not_held_says_so(self, pool: Pool) -> None:
        assert not pool.run(scripts.unreserve(POOL, "a"))


class TestEnqueue:
    def test_arrival_numbers_count_up(self, pool: Pool) -> None:
        assert [pool.enqueue("a"), pool.enqueue("b")] == [1, 2]

    def test_the_mirrored_header_is_the_enqueued_one_with_its_number(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert pool.run(scripts.mirror(POOL)).headers == (header("a", arrival_number=1),)

    def test_it_confirms_the_reservation_without_counting_twice(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 12.5, queue_limit=9))
        pool.enqueue("a", cost=12.5)
        assert pool.load() == {"high": ClassReserve(1, 12.5)}

    def test_it_works_after_the_reservation_expired(self, pool: Pool) -> None:
        pool.enqueue("a", cost=12.5)
        assert pool.load() == {"high": ClassReserve(1, 12.5)}

    def test_a_repeated_id_changes_nothing(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert pool.enqueue("a") is None
        assert (len(pool.changes()), pool.load()["high"].num) == (1, 1)

    def test_a_repeated_id_changes_nothing_once_it_is_claimed(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        pool.enqueue("a")
        assert pool.waiting() == []

    def test_it_announces_the_header(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert pool.changes() == [scripts.Change(ChangeOp.ADD, "a", header=header("a", arrival_number=1))]

    def test_the_gateway_owns_it(self, pool: Pool) -> None:
        pool.enqueue("a")
        stored = pool.client.hget(keys.OWNED.of(POOL, "g1"), "a")
        assert decode(Header, stored or b"") == header("a", arrival_number=1)


class TestClaim:
    def test_it_returns_header_payload_and_tokens(self, pool: Pool) -> None:
        pool.enqueue("a")
        (won,) = pool.claim("w1", "a")
        assert won == scripts.Claimed(header("a", arrival_number=1), payload("a"), b"")

    def test_only_one_worker_wins(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert (len(pool.claim("w1", "a")), len(pool.claim("w2", "a"))) == (1, 0)

    def test_the_rest_of_a_batch_is_won_beside_a_lost_one(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.enqueue("b")
        pool.claim("w1", "a")
        assert [won.header.request_id for won in pool.claim("w2", "a", "b")] == ["b"]

    def test_it_takes_the_cost_off_the_class(self, pool: Pool) -> None:
        pool.enqueue("a", cost=10.0)
        pool.enqueue("b", cost=0.1)
        pool.claim("w1", "a")
        assert pool.load() == {"high": ClassReserve(1, pytest.approx(0.1))}  # type: ignore[arg-type]

    def test_an_empty_class_leaves_no_rounding_behind(self, pool: Pool) -> None:
        pool.enqueue("a", cost=0.1)
        pool.enqueue("b", cost=0.2)
        pool.claim("w1", "a", "b")
        assert pool.load() == {}

    def test_it_tells_the_others(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        assert pool.changes()[-1] == scripts.Change(ChangeOp.CLAIMED, "a", worker="w1")

    def test_a_payload_that_expired_is_said_to_be_missing(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.client.delete(keys.PAYLOAD.of(POOL, "a"))
        assert pool.claim("w1", "a")[0].payload is None

    def test_the_claim_can_be_read_by_an_operator(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        stored = pool.client.hget(keys.CLAIMS.of(POOL), "a") or b""
        assert scripts.read_claim(stored) == scripts.Claim("w1", False, header("a", arrival_number=1))


class TestPublish:
    @pytest.fixture(autouse=True)
    def _claimed(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.enqueue("b")
        pool.claim("w1", "a", "b")

    def test_it_appends_the_tokens(self, pool: Pool) -> None:
        pool.publish("w1", row("a", 0, 5))
        pool.publish("w1", row("a", 1, 6, 70_000))
        assert pool.tokens("a") == (5, 6, 70_000)

    def test_the_gateway_receives_the_frame_as_sent(self, pool: Pool) -> None:
        frame = Frame(worker="w1", step=3, published_at=9.5, rows=(row("a", 0, 5),))
        pool.run(scripts.publish(POOL, "w1", 5.0, {"g1": frame}))
        assert pool.output() == [frame]

    def test_each_gateway_receives_its_own_frame(self, pool: Pool) -> None:
        frames = {
            gateway: Frame(worker="w1", step=1, published_at=1.0, rows=(row(request_id, 0, 5),))
            for gateway, request_id in (("g1", "a"), ("g2", "b"))
        }
        pool.run(scripts.publish(POOL, "w1", 5.0, frames))
        assert [pool.output(gateway) for gateway in ("g1", "g2")] == [[frames["g1"]], [frames["g2"]]]

    def test_sent_twice_it_publishes_once_and_says_how_far_it_is(self, pool: Pool) -> None:
        pool.publish("w1", row("a", 0, 5))
        assert pool.publish("w1", row("a", 0, 5)) == Published(stored={"a": 1})
        assert (pool.tokens("a"), len(pool.output())) == ((5,), 1)

    def test_a_gap_is_refused(self, pool: Pool) -> None:
        assert pool.publish("w1", row("a", 1, 6)) == Published(stored={"a": 0})

    def test_a_finishing_row_sent_twice_is_told_that_the_claim_ended(self, pool: Pool) -> None:
        pool.publish("w1", row("a", 0, 5, finish="stop"))
        assert pool.publish("w1", row("a", 0, 5, finish="stop")) == Published(lost=("a",))

    def test_a_claim_that_ended_is_not_requeued(self, pool: Pool) -> None:
        pool.publish("w1", row("a", 0, 5, finish="stop"))
        assert [one.request_id for one in pool.run(scripts.release(POOL, "w1"))] == ["b"]

    def test_another_worker_publishes_nothing(self, pool: Pool) -> None:
        assert pool.publish("w2", row("a", 0, 5)) == Published(lost=("a",))
        assert pool.output() == []

    def test_an_older_attempt_publishes_nothing(self, pool: Pool) -> None:
        pool.run(scripts.release(POOL, "w1", ["a"]))
        pool.claim("w1", "a")
        assert pool.publish("w1", row("a", 0, 5, attempt=0)) == Published(lost=("a",))

    def test_one_lost_row_holds_the_whole_step_back(self, pool: Pool) -> None:
        pool.run(scripts.release(POOL, "w1", ["a"]))
        assert not pool.publish("w1", row("a", 0, 5), row("b", 0, 5)).done
        assert pool.tokens("b") == ()

    def test_it_renews_the_lease(self, pool: Pool) -> None:
        pool.client.zadd(keys.WORKER_LEASES.of(POOL), {"w1": 1.0})
        pool.publish("w1", row("a", 0, 5))
        assert pool.run(scripts.requeue_expired(POOL)) == ()


class TestRenew:
    def test_it_tells_which_claims_are_still_held(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.enqueue("b")
        pool.claim("w1", "a", "b")
        pool.run(scripts.release(POOL, "w1", ["a"]))
        assert pool.run(scripts.renew(POOL, "w1", 5.0)) == {"b": 0}

    def test_it_keeps_the_claims_from_being_requeued(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a", lease_s=-1.0)
        pool.run(scripts.renew(POOL, "w1", 5.0))
        assert pool.run(scripts.requeue_expired(POOL)) == ()


class TestCancel:
    def test_a_waiting_request_ends_at_once(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert pool.run(scripts.cancel(POOL, "a")) is CancelOutcome.WAITING
        (frame,) = pool.output()
        assert isinstance(frame, Frame)
        assert frame.rows == (row("a", 0, finish="cancelled"),)

    def test_a_waiting_request_leaves_queue_and_load(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.run(scripts.cancel(POOL, "a"))
        assert (pool.waiting(), pool.load()) == ([], {})

    def test_a_claimed_request_is_its_workers_to_end(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        assert pool.run(scripts.cancel(POOL, "a")) is CancelOutcome.CLAIMED
        assert (pool.changes()[-1], pool.output()) == (scripts.Change(ChangeOp.CANCEL, "a"), [])

    def test_asked_twice_it_tells_the_worker_once(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        for _ in range(2):
            pool.run(scripts.cancel(POOL, "a"))
        assert [change.op for change in pool.changes()].count(ChangeOp.CANCEL) == 1

    def test_an_unknown_request_is_said_to_be_unknown(self, pool: Pool) -> None:
        assert pool.run(scripts.cancel(POOL, "a")) is CancelOutcome.UNKNOWN

    def test_a_reservation_is_given_back(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=1))
        pool.run(scripts.cancel(POOL, "a"))
        assert pool.load() == {}

    def test_a_cancelled_claim_ends_instead_of_being_requeued(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        pool.publish("w1", row("a", 0, 5, 6))
        pool.run(scripts.cancel(POOL, "a"))
        pool.run(scripts.release(POOL, "w1"))
        last = pool.output()[-1]
        assert isinstance(last, Frame)
        assert (last.rows, pool.waiting()) == ((row("a", 2, finish="cancelled"),), [])


class TestRequeue:
    @pytest.fixture(autouse=True)
    def _half_done(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        pool.publish("w1", row("a", 0, 5, 6))

    @staticmethod
    def _expire(pool: Pool) -> tuple[scripts.RequeuedClaim, ...]:
        pool.client.zadd(keys.WORKER_LEASES.of(POOL), {"w1": 1.0})
        return pool.run(scripts.requeue_expired(POOL))

    def test_a_live_worker_keeps_its_claims(self, pool: Pool) -> None:
        assert pool.run(scripts.requeue_expired(POOL)) == ()

    def test_an_expired_lease_gives_them_back(self, pool: Pool) -> None:
        assert self._expire(pool) == (scripts.RequeuedClaim("w1", "a"),)

    def test_the_header_counts_the_attempt_and_the_tokens(self, pool: Pool) -> None:
        self._expire(pool)
        wanted = header("a", arrival_number=1, attempt=1, num_generated_tokens=2)
        assert pool.run(scripts.mirror(POOL)).headers == (wanted,)

    def test_the_gateway_learns_where_it_goes_on(self, pool: Pool) -> None:
        self._expire(pool)
        assert pool.output()[-1] == Requeued(request_id="a", attempt=1, offset=2)

    def test_the_next_worker_receives_what_was_published(self, pool: Pool) -> None:
        self._expire(pool)
        assert pool.claim("w2", "a")[0].token_ids == struct.pack("<2I", 5, 6)

    def test_the_next_worker_goes_on_after_the_last_token(self, pool: Pool) -> None:
        self._expire(pool)
        pool.claim("w2", "a")
        assert pool.publish("w2", row("a", 2, 7, attempt=1)).done
        assert pool.tokens("a") == (5, 6, 7)

    def test_the_hung_worker_is_fenced_off(self, pool: Pool) -> None:
        self._expire(pool)
        pool.claim("w2", "a")
        assert pool.publish("w1", row("a", 2, 7)) == Published(lost=("a",))

    def test_the_class_bears_its_cost_again(self, pool: Pool) -> None:
        self._expire(pool)
        assert pool.load() == {"high": ClassReserve(1, 12.5)}

    def test_twice_is_once(self, pool: Pool) -> None:
        self._expire(pool)
        assert pool.run(scripts.requeue_expired(POOL)) == ()

    def test_a_worker_that_leaves_has_no_lease(self, pool: Pool) -> None:
        pool.run(scripts.retire(POOL, "w1"))
        assert pool.client.zcard(keys.WORKER_LEASES.of(POOL)) == 0

    def test_a_release_by_another_worker_does_nothing(self, pool: Pool) -> None:
        assert pool.run(scripts.release(POOL, "w2", ["a"])) == ()

    def test_expired_reservations_go_too(self, pool: Pool) -> None:
        pool.run(scripts.reserve(POOL, "b", "low", 1.0, queue_limit=1))
        pool.client.zadd(keys.RESERVATION_ENDS.of(POOL), {"b": 1.0})
        pool.run(scripts.requeue_expired(POOL))
        assert pool.load() == {}


class TestMirror:
    def test_an_empty_pool_starts_at_the_beginning(self, pool: Pool) -> None:
        assert pool.run(scripts.mirror(POOL)) == scripts.Mirror((), None, "0-0")

    def test_headers_come_in_order_of_arrival(self, pool: Pool) -> None:
        for request_id in ("z", "a", "m"):
            pool.enqueue(request_id)
        assert pool.waiting() == ["z", "a", "m"]

    def test_it_ends_where_the_changes_go_on(self, pool: Pool) -> None:
        pool.enqueue("a")
        after = pool.run(scripts.mirror(POOL)).last_change_id
        pool.enqueue("b")
        entries = pool.client.xread({keys.CHANGES.of(POOL): after})
        assert [fields[b"id"] for _, fields in entries[0][1]] == [b"b"]

    def test_a_header_of_another_schema_is_left_out_and_named(self, pool: Pool) -> None:
        pool.client.hset(keys.HEADERS.of(POOL), "a", msgspec.msgpack.encode({"v": 99}))
        mirror = pool.run(scripts.mirror(POOL))
        assert (mirror.headers, "99" in str(mirror.unreadable[0])) == ((), True)


class TestForget:
    def test_it_deletes_payload_tokens_and_ownership(self, pool: Pool) -> None:
        pool.enqueue("a")
        pool.claim("w1", "a")
        pool.publish("w1", row("a", 0, 5, finish="stop"))
        pool.run(scripts.forget(POOL, "g1", ["a"]))
        left = {key.split(b":", 2)[2] for key in pool.client.scan_iter()}
        assert left == {b"arrivals:number", b"changes", b"worker-leases", b"out:g1"}

    def test_it_counts_those_it_knew(self, pool: Pool) -> None:
        pool.enqueue("a")
        assert pool.run(scripts.forget(POOL, "g1", ["a", "b"])) == 1


class TestAnnouncePolicy:
    @staticmethod
    def _announce(pool: Pool, version: int, force: bool = False) -> bool:
        announcement = PolicyAnnouncement(version=version, document="{}", published_at=float(version))
        return pool.run(scripts.announce_policy(POOL, announcement, force))

    def test_a_new_version_is_live_and_announced(self, pool: Pool) -> None:
        assert self._announce(pool, 1)
        assert (pool.run(scripts.mirror(POOL)).policy.version, pool.changes()) == (  # type: ignore[union-attr]
            1,
            [scripts.Change(ChangeOp.POLICY, "1")],
        )

    def test_repeated_it_announces_nothing(self, pool: Pool) -> None:
        self._announce(pool, 1)
        assert self._announce(pool, 1)
        assert len(pool.changes()) == 1

    def test_an_older_version_does_not_replace_a_newer(self, pool: Pool) -> None:
        self._announce(pool, 2)
        assert not self._announce(pool, 1)

    def test_force_goes_back(self, pool: Pool) -> None:
        self._announce(pool, 2)
        assert self._announce(pool, 1, force=True)


def test_every_key_that_the_scripts_write_is_in_the_table(pool: Pool) -> None:
    pool.run(scripts.reserve(POOL, "a", "high", 1.0, queue_limit=9))
    pool.enqueue("b")
    pool.enqueue("c")
    pool.claim("w1", "b")
    pool.publish("w1", row("b", 0, 5))
    pool.run(scripts.announce_policy(POOL, PolicyAnnouncement(version=1, document="{}", published_at=1.0)))
    known = {spec.of(POOL, "?") for spec in keys.TABLE}
    names = (key.decode() for key in pool.client.scan_iter())
    written = {re.sub("(payload|tokens|claimed|out|owned):.+", r"\1:?", name) for name in names}
    assert written <= known
