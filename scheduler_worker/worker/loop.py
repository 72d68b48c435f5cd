"""The step loop: the only code that touches the scheduler and the executor.

A turn takes the news, asks for claims, sends what the turn before computed, launches a step if the core plans one, and
collects the oldest when as many are in flight as the executor allows. The courier and the follower speak to Redis,
beside the loop.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from scheduler_worker.core.plan import Applied, Finished, StepPlan
from scheduler_worker.core.policy import InvalidPolicy, Policy, check_policy
from scheduler_worker.core.scheduler import SchedulerVerbs
from scheduler_worker.core.sequence import FinishReason, SequenceHeader
from scheduler_worker.executor import Executor, OutOfMemory, RowOutput, SequenceInput, StepOutput, to_result
from scheduler_worker.protocol.messages import FrameRow, Header, PolicyAnnouncement, Timings
from scheduler_worker.protocol.scripts import Change, ChangeOp, Claimed
from scheduler_worker.protocol.token_bytes import unpack
from scheduler_worker.worker.clock import RedisClock
from scheduler_worker.worker.courier_process import CourierProcess, Going
from scheduler_worker.worker.inbox import (
    ClaimsHeld,
    ClaimsLost,
    ClaimsSettled,
    DrainingChanged,
    Inbox,
    News,
    PolicyNews,
    QueueChanged,
    QueueMirrored,
    ThreadFailed,
)
from scheduler_worker.worker.stats import LoopStats

logger = logging.getLogger(__name__)

REPORT_EVERY_S: Final = 0.25
RENEW_EVERY_S: Final = 1.0
IDLE_WAIT_S: Final = 0.1
WAIT_WITH_WORK_S: Final = 0.005
MAX_ATTEMPTS: Final = 10
MAX_FAILED_STEPS: Final = 5


class WorkerFailed(RuntimeError):
    """A helper thread ended by an error; `__cause__` has it."""


@dataclass(slots=True, eq=False)
class Held:
    """A claimed request."""

    header: Header
    claimed_at: float


class StepLoop:
    """Owns the worker's state. `turn` is one iteration; `run` turns until asked to stop."""

    def __init__(
        self,
        scheduler: SchedulerVerbs,
        executor: Executor,
        courier: CourierProcess,
        inbox: Inbox,
        clock: RedisClock,
        policy: Policy,
        report: Callable[[LoopStats], None],
        cost_model: Callable[[], dict[str, float]],
        worker: str,
    ) -> None:
        self._scheduler, self._executor, self._courier = scheduler, executor, courier
        self._inbox, self._clock, self._policy, self._report = inbox, clock, policy, report
        self._cost_model, self._worker = cost_model, worker
        self._waiting: dict[str, Header] = {}
        self._asked: set[str] = set()
        self._cancelled_while_asked: set[str] = set()
        self._impossible: dict[str, str] = {}
        self._held: dict[str, Held] = {}
        self._in_flight: deque[StepPlan] = deque()
        self._max_in_flight = executor.capacity.max_in_flight_steps
        self._draining = False
        self._announced: PolicyAnnouncement | None = None
        self._num_failed_steps = 0
        self._stats = LoopStats()
        self._next_report = float("inf")  # until the queue is mirrored
        self._out: list[FrameRow] = []
        self._going = Going.nobody()
        self._unsent_step: int | None = None

    # --- the turn

    def run(self, stop: threading.Event) -> None:
        """Turn until asked to stop; raises what cannot be handled."""
        while not stop.is_set():
            self.turn()

    def turn(self) -> None:
        """News, claims, at most one step launched and one collected; waits when there is nothing to do.

        The tokens of the turn before leave after this one's claims: these take a moment at the courier, and come back
        before the next step is planned; behind the tokens of a large batch they would miss it.
        """
        started = time.perf_counter()
        self._take_news()
        self._report_if_due()
        if self._may_claim():
            self._ask_for_claims()
        self._send()
        if not self._may_step():
            return
        launched = self._launch()
        if self._in_flight and (not launched or len(self._in_flight) >= self._max_in_flight):
            output = self._collect()
            self._stats.step_ended(output, time.perf_counter() - started)
        elif not launched:
            self._idle()

    def finish_steps(self) -> None:
        """Collect and publish what is in flight, launch nothing more: before the worker leaves. Each step by itself,
        first the one whose tokens the turn before left here."""
        self._send()
        while self._in_flight:
            self._collect()
            self._send()

    def _may_claim(self) -> bool:
        return time.monotonic() < self._courier.lease_ends_at and self._courier.has_space()

    def _may_step(self) -> bool:
        """Only under a lease, and not far ahead of what Redis knows."""
        if time.monotonic() < self._courier.lease_ends_at:
            return self._courier.wait_for_space(IDLE_WAIT_S)
        if self._courier.num_queued == 0:
            self._courier.renew()
        self._courier.wait(IDLE_WAIT_S)
        return False

    def _idle(self) -> None:
        self._courier.renew_if_due(RENEW_EVERY_S)
        self._courier.wait(WAIT_WITH_WORK_S if self._scheduler.has_work() else IDLE_WAIT_S)

    def _report_if_due(self) -> None:
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + REPORT_EVERY_S
            stats, self._stats = self._stats, LoopStats()
            stats.close(self._scheduler.snapshot(self._clock.now()), self._cost_model(), self._draining)
            self._report(stats)

    # --- steps

    def _ask_for_claims(self) -> None:
        if self._draining or not self._waiting:
            return
        asked = self._asked
        wanted = tuple(one for one in self._scheduler.claim_candidates(self._clock.now()) if one not in asked)
        if wanted:
            asked.update(wanted)
            self._courier.claim(wanted)

    def _launch(self) -> bool:
        plan = self._scheduler.plan_step(self._clock.now())
        if plan is None:
            return False
        self._scheduler.begin(plan)
        self._stats.events.extend(plan.events)
        try:
            self._executor.launch(plan)
        except OutOfMemory as error:
            self._shrink(plan, error)
        else:
            self._in_flight.append(plan)
        return True

    def _collect(self) -> StepOutput:
        output = self._executor.collect()
        plan = self._in_flight.popleft()
        self._num_failed_steps = 0
        applied = self._scheduler.apply_result(to_result(plan, output), self._clock.now())
        self._stats.step_applied(plan)
        self._take(applied, output.rows)
        self._unsent_step = output.step
        return output

    def _shrink(self, plan: StepPlan, error: OutOfMemory) -> None:
        """The step was not computed; those before it were. The core plans again, smaller."""
        logger.warning("step %d found no memory: %s", plan.step, error)
        self.finish_steps()
        self._take(self._scheduler.fail_step(self._clock.now()))
        self._num_failed_steps += 1
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            self._num_failed_steps = 0
            self._give_up_on(plan.chunks[-1].seq_id, "the device has no memory for it, even in a small batch")
        self._unsent_step = plan.step

    def _give_up_on(self, seq_id: str, error: str) -> None:
        held = self._held.pop(seq_id, None)
        self._take(self._scheduler.cancel(seq_id, self._clock.now()))
        if held is not None:
            self._add_row(held, (), FinishReason.FAILED, error)

    # --- what the core decided

    def _take(self, applied: Applied, outputs: Iterable[RowOutput] = ()) -> None:
        """Turn what the core made of it into rows for the gateways."""
        if applied.events:
            self._stats.events.extend(applied.events)
        finished = {one.seq_id: one for one in applied.finished}
        if applied.tokens is not None:
            self._take_tokens(applied.tokens.rows, iter(outputs), finished)
        for one in finished.values():
            self._end(one)
        for seq_id in applied.released:
            self._executor.remove(seq_id)

    def _take_tokens(
        self, told: Iterable[tuple[str, int]], outputs: Iterator[RowOutput], finished: dict[str, Finished]
    ) -> None:
        """Both are in the plan's order; an output of which nothing is told is passed over. This runs for every row."""
        add, num_generated = self._going.add, self._stats.num_generated_tokens
        for seq_id, num_new in told:
            output = next(outputs)
            while output.seq_id != seq_id:
                output = next(outputs)
            ended = finished.pop(seq_id, None)
            held = self._held.get(seq_id) if ended is None else self._held.pop(seq_id, None)
            if held is None:
                continue
            header = held.header
            num_generated[header.class_id] += num_new
            if ended is not None:
                tokens, timings = output.token_ids[:num_new], self._timings(held, ended)
                self._add_row(held, tokens, ended.reason, ended.error or "", output, timings)
            elif num_new == 1 and output.logprobs is None:
                add(seq_id, header.attempt, output.token_ids[0])
            else:
                self._add_row(held, output.token_ids[:num_new], logprobs=output)

    def _end(self, ended: Finished) -> None:
        """A sequence that ended without a token in this step."""
        held = self._held.pop(ended.seq_id, None)
        if held is not None and ended.reason is not FinishReason.WITHDRAWN:
            self._add_row(held, (), ended.reason, ended.error or "", timings=self._timings(held, ended))
        elif ended.seq_id in self._waiting and ended.reason is FinishReason.FAILED:
            self._impossible[ended.seq_id] = ended.error or "it can never run on this worker"

    def _add_row(
        self,
        held: Held,
        tokens: tuple[int, ...],
        finish: str = "",
        error: str = "",
        logprobs: RowOutput | None = None,
        timings: Timings | None = None,
    ) -> None:
        reported = logprobs.logprobs if logprobs is not None else None
        row = FrameRow(
            request_id=held.header.request_id,
            attempt=held.header.attempt,
            offset=0,  # the courier knows it
            token_ids=tokens,
            finish=finish,
            error=error,
            logprobs=() if reported is None else (reported,),
            timings=timings,
        )
        self._out.append(row)

    def _send(self) -> None:
        """One publication a step; a step without tokens is progress as well."""
        step, self._unsent_step = self._unsent_step, None
        if self._out or self._going.request_ids:
            self._courier.publish(step or 0, self._out, self._going)
            self._out, self._going = [], Going.nobody()
        elif step is not None:
            self._courier.renew_if_due(RENEW_EVERY_S)

    @staticmethod
    def _timings(held: Held, ended: Finished) -> Timings:
        """`wait_s` of the core, split at the claim."""
        queue_s = max(held.claimed_at - held.header.arrived_at, 0.0)
        wait_s = ended.wait_s
        return Timings(
            queue_s=queue_s if wait_s is None else min(queue_s, wait_s),
            formation_s=None if wait_s is None else max(wait_s - queue_s, 0.0),
            prefill_s=ended.prefill_s,
            decode_s=ended.decode_s,
            parked_s=ended.parked_s,
            num_preemptions=ended.num_preemptions,
            num_cached_tokens=ended.num_cached_tokens,
        )

    # --- news

    def _take_news(self) -> None:
        for news in chain(self._courier.news(), self._inbox.take()):
            self._take_one(news)

    def _take_one(self, news: News) -> None:
        match news:
            case QueueChanged(changes):
                for change in changes:
                    self._take_change(change)
            case ClaimsSettled():
                self._settle(news)
            case ClaimsLost(attempts):
                self._drop_lost(lambda seq_id, held: attempts.get(seq_id) == held.header.attempt)
            case ClaimsHeld(attempts):
                self._drop_lost(lambda seq_id, held: attempts.get(seq_id) != held.header.attempt)
            case QueueMirrored():
                self._take_mirror(news)
            case PolicyNews(announcement):
                self._take_policy(announcement)
            case DrainingChanged(draining):
                self._draining = draining
            case ThreadFailed(name, error):
                raise WorkerFailed(f"the {name} failed: {error}") from error

    def _take_change(self, change: Change) -> None:
        if change.op is ChangeOp.ADD and change.header is not None:
            self._add(change.header)
        elif change.op is ChangeOp.CANCEL:
            self._cancel(change.id)
        elif change.op is ChangeOp.CLAIMED and change.worker != self._worker:
            self._withdraw([change.id])

    def _add(self, header: Header) -> None:
        """A request waits. One that we hold at this attempt, or a later one, is an echo."""
        held = self._held.get(header.request_id)
        known = held.header if held is not None else self._waiting.get(header.request_id)
        if known is not None and known.attempt >= header.attempt:
            return
        if held is not None:
            self._drop(header.request_id)
        self._waiting[header.request_id] = header
        if not self._serves(header.class_id):
            self._impossible[header.request_id] = f"class {header.class_id} is not in the policy"
        else:
            self._take(self._scheduler.add(to_core(header), self._clock.now()))
        if header.request_id in self._impossible:
            self._claim_to_fail(header.request_id)

    def _serves(self, class_id: str) -> bool:
        try:
            self._policy.find(class_id)
        except KeyError:
            return False
        return True

    def _claim_to_fail(self, seq_id: str) -> None:
        if seq_id not in self._asked and not self._draining:
            self._asked.add(seq_id)
            self._courier.claim((seq_id,))

    def _withdraw(self, seq_ids: Iterable[str]) -> None:
        gone = [one for one in seq_ids if self._waiting.pop(one, None) is not None]
        for seq_id in gone:
            self._impossible.pop(seq_id, None)
        if gone:
            self._take(self._scheduler.withdraw(gone, self._clock.now()))

    def _cancel(self, seq_id: str) -> None:
        """Ours ends with a row; the script ended a waiting one; a claim under way ends when it is won."""
        if seq_id in self._asked:
            self._cancelled_while_asked.add(seq_id)
        self._waiting.pop(seq_id, None)
        self._impossible.pop(seq_id, None)
        self._take(self._scheduler.cancel(seq_id, self._clock.now()))

    def _settle(self, news: ClaimsSettled) -> None:
        self._asked.difference_update(news.asked)
        won = {one.header.request_id: one for one in news.won}
        self._withdraw([one for one in news.asked if one not in won])
        for claimed in news.won:
            self._receive(claimed)
        self._cancelled_while_asked.difference_update(news.asked)

    def _receive(self, claimed: Claimed) -> None:
        """A request is ours now: compute it, or end it with the reason why not."""
        header, now = claimed.header, self._clock.now()
        held = Held(header, now)
        waited = self._waiting.pop(header.request_id, None)
        if (ending := self._why_not(claimed)) is not None:
            self._impossible.pop(header.request_id, None)
            self._take(self._scheduler.withdraw([header.request_id], now))
            self._add_row(held, (), *ending)
            return
        if waited is None or waited.attempt != header.attempt:
            self._take(self._scheduler.add(to_core(header), now))
        self._held[header.request_id] = held
        self._introduce(claimed)
        self._scheduler.claim([header.request_id], now)

    def _why_not(self, claimed: Claimed) -> tuple[FinishReason, str] | None:
        request_id = claimed.header.request_id
        if request_id in self._cancelled_while_asked:
            return FinishReason.CANCELLED, ""
        if request_id in self._impossible:
            return FinishReason.FAILED, self._impossible[request_id]
        if claimed.payload is None:
            return FinishReason.FAILED, "its prompt is no longer stored"
        if claimed.header.attempt >= MAX_ATTEMPTS:
            return FinishReason.FAILED, f"given up after {claimed.header.attempt} workers lost it"
        return None

    def _introduce(self, claimed: Claimed) -> None:
        assert claimed.payload is not None
        prompt, generated = unpack(claimed.payload.token_ids), unpack(claimed.token_ids)
        self._executor.add(
            SequenceInput(
                seq_id=claimed.header.request_id,
                token_ids=(prompt + generated).tolist(),
                num_prompt_tokens=len(prompt),
                sampling=claimed.payload.sampling,
            )
        )

    def _drop_lost(self, is_lost: Callable[[str, Held], bool]) -> None:
        for seq_id in [one for one, held in self._held.items() if is_lost(one, held)]:
            logger.warning("request %s is no longer ours: the lease ran out", seq_id)
            self._drop(seq_id)

    def _drop(self, seq_id: str) -> None:
        """Forget a claim without a row, also one that is not sent yet: another worker goes on with it."""
        del self._held[seq_id]
        self._going.remove(seq_id)
        self._out = [row for row in self._out if row.request_id != seq_id]
        self._take(self._scheduler.withdraw([seq_id], self._clock.now()))

    def _take_mirror(self, mirror: QueueMirrored) -> None:
        present = {header.request_id for header in mirror.headers}
        self._withdraw([one for one in self._waiting if one not in present and one not in self._asked])
        for header in mirror.headers:
            self._add(header)
        if mirror.policy is not None:
            self._take_policy(mirror.policy)
        self._next_report = min(self._next_report, time.monotonic())

    def _take_policy(self, announcement: PolicyAnnouncement) -> None:
        try:
            policy = check_policy(json.loads(announcement.document))
        except (ValueError, InvalidPolicy) as error:
            logger.error("policy v%d cannot be used, the one before stays: %s", announcement.version, error)
            return
        if announcement == self._announced:
            return
        self._announced, self._policy = announcement, policy
        self._end_unserved()
        self._take(self._scheduler.set_policy(policy, announcement.version, self._clock.now()))
        logger.info("policy v%d from the next step on", announcement.version)

    def _end_unserved(self) -> None:
        """Requests of a class that a policy dropped without naming a fallback end with that reason."""
        for seq_id, header in list(self._waiting.items()):
            if not self._serves(header.class_id):
                self._take(self._scheduler.withdraw([seq_id], self._clock.now()))
                self._impossible[seq_id] = f"class {header.class_id} is not in the policy"
                self._claim_to_fail(seq_id)
        for seq_id, held in list(self._held.items()):
            if not self._serves(held.header.class_id):
                self._give_up_on(seq_id, f"class {held.header.class_id} is not in the policy")


def to_core(header: Header) -> SequenceHeader:
    """The header as the core knows it."""
    return SequenceHeader(
        seq_id=header.request_id,
        class_id=header.class_id,
        tenant=header.tenant,
        arrival_number=header.arrival_number,
        arrived_at=header.arrived_at,
        num_prompt_tokens=header.num_prompt_tokens,
        max_tokens=header.max_tokens,
        num_generated_tokens=header.num_generated_tokens,
        block_hashes=header.block_hashes,
        tenant_weight=header.tenant_weight,
        attempt=header.attempt,
        arm=header.arm,
    )
