"""What admission reckons with: how much work arrives, how long answers become, how fast the pool is.

One forecast belongs to one door (a gateway, or the simulator). Its arrivals and answers are taken for a fair sample
of what the other doors see. Times are readings of one clock, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import exp
from typing import Final, NamedTuple

from scheduler_worker.core import admission
from scheduler_worker.core.output_lengths import OutputLengths
from scheduler_worker.core.policy import ClassPolicy, Policy

SHORT_S: Final = 1.0
LONG_S: Final = 10.0
USUAL_S: Final = 300.0
MEMORIES_S: Final = (SHORT_S, LONG_S, USUAL_S)
LASTING_SHARE: Final = 0.5
MIN_AGE_S: Final = 1.0
SIZE_WEIGHT: Final = 0.02
HALFWAY: Final = 0.5
FIRST_PROMPT_TOKENS: Final = 256.0
CACHED_SHARE: Final = 0.5


class Waiting(NamedTuple):
    """Accepted requests of one class that no worker has claimed: how many, and their cost tokens."""

    num: int
    cost: float


class ArrivalRate:
    """Work per second of late: the larger of a short and a long memory (e-fold in so many seconds).

    The short one sees a burst while it can still be refused, the long one does not forget between two. Each is
    corrected for what it cannot have seen yet, or the first seconds would look idle.

    A flow lasts, a burst passes. Within a bound, a class is expected to bring what the last seconds brought, as often
    as is asked, or half of what five usual minutes bring, whichever is more: a flow that has lasted is foreseen in
    full, and so is one that jumps fivefold, but not a burst into an idle pool. What is usual leaves out the last
    seconds; until the door has been open for some, all counts as a flow.
    """

    def __init__(self, opened_at: float | None = None) -> None:
        self._sums = [0.0] * len(MEMORIES_S)
        self._opened_at = opened_at
        self._at = 0.0 if opened_at is None else opened_at

    def add(self, cost: float, now: float) -> None:
        """Work arrived."""
        if self._opened_at is None:
            self._opened_at = now
        self._sums = [
            known * exp((self._at - now) / m) + cost for known, m in zip(self._sums, MEMORIES_S, strict=True)
        ]
        self._at = now

    def value(self, now: float) -> float:
        """Cost tokens per second, by the memory that says more."""
        return max(self._per_s(now)[:2])

    def flow(self, now: float, within_s: float, repeats: float) -> float:
        """What of it is to be expected to go on for so long, if a burst comes so many times more."""
        short, long, usual = self._per_s(now)
        if self._age_s(now) < LONG_S:
            return max(short, long)
        again = repeats * self._sums[1] * exp((self._at - now) / LONG_S)
        return min(max(short, long), max(again, LASTING_SHARE * USUAL_S * usual) / within_s)

    def usual(self, now: float, per_s: float) -> float:
        """How much of so many cost tokens per second is nothing new."""
        return per_s if self._age_s(now) < LONG_S else min(per_s, self._per_s(now)[2])

    def _per_s(self, now: float) -> tuple[float, float, float]:
        """By the short and the long memory, and what is usual: the longest memory without the long one's part."""
        fade = [exp((self._at - now) / m) for m in MEMORIES_S]
        seen_s = [m * (1.0 - exp(-max(self._age_s(now), MIN_AGE_S) / m)) for m in MEMORIES_S]
        short, long, usual = (known * one for known, one in zip(self._sums, fade, strict=True))
        return short / seen_s[0], long / seen_s[1], max(0.0, usual - long) / (seen_s[2] - seen_s[1])

    def _age_s(self, now: float) -> float:
        return 0.0 if self._opened_at is None else now - self._opened_at


class Progress:
    """How far those that run have come on average: halfway while one begins as another ends, not at all when all have
    just begun. Who begins brings nothing; with time all come on."""

    def __init__(self) -> None:
        self._share, self._num_running, self._at = HALFWAY, 0, 0.0

    def missing(self, num_running: int, request_s: float, now: float) -> float:
        """What they lack of being halfway through, as a share of a request that takes `request_s`. Times do not go
        back; who ended between two looks is taken to have been as far as the others."""
        came = (now - self._at) / request_s if request_s > 0.0 else HALFWAY
        share = min(HALFWAY, self._share + came)
        if num_running > self._num_running:
            share *= self._num_running / num_running
        self._share, self._num_running, self._at = share, num_running, now
        return HALFWAY - share


class Prefixes:
    """Blocks of prompts that came of late, by hash: what the workers are expected to hold still.

    A block is expected to be there once as many requests have brought it as there are workers, since any of them may
    take the next. Beyond `CACHED_SHARE` of what the smallest worker holds, those brought longest ago are forgotten.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[int, int] = OrderedDict()

    def bring(self, hashes: Sequence[int], num_blocks: int) -> None:
        """A request with these blocks came in; a worker holds so many."""
        for one in hashes:
            self._times[one] = self._times.pop(one, 0) + 1
        while len(self._times) > CACHED_SHARE * num_blocks:
            self._times.popitem(last=False)

    def num_expected(self, hashes: Sequence[int], num_workers: int) -> int:
        """How many of these blocks, from the first on, a worker need not compute."""
        for place, one in enumerate(hashes):
            if self._times.get(one, 0) < num_workers:
                return place
        return len(hashes)


NOTHING: Final = ArrivalRate()
"""Of a class that nobody has asked for."""


class Forecast:
    """Learns from what passes; answers `admission.decide`'s questions.

    `opened_at` is when it began to look (None: each class with its first request). Who was refused is expected back
    at the time that was named: the next one is asked to come after them.
    """

    def __init__(self, opened_at: float | None = None) -> None:
        self._opened_at = opened_at
        self._accepted: dict[str, ArrivalRate] = {}
        self._offered: dict[str, ArrivalRate] = {}
        self._lengths: dict[str, OutputLengths] = {}
        self._back_at: dict[str, float] = {}
        self._num_accepted = 0
        self._progress = Progress()
        self._prefixes = Prefixes()
        self._num_workers, self._num_kv_tokens, self._block_size = 1, 0, 1
        self._mean = admission.MeanRequest(FIRST_PROMPT_TOKENS, FIRST_PROMPT_TOKENS, FIRST_PROMPT_TOKENS)

    def accepted(
        self, ask: admission.Ask, cost: float, now: float, block_hashes: Sequence[int] = ()
    ) -> None:
        """A request came in, with these full blocks of prompt."""
        self._prefixes.bring(block_hashes, self._num_kv_tokens // self._block_size)
        self._accepted.setdefault(ask.class_id, ArrivalRate(self._opened_at)).add(cost, now)
        self._num_accepted += 1
        weight, mean = max(SIZE_WEIGHT, 1.0 / self._num_accepted), self._mean
        self._mean = admission.MeanRequest(
            mean.num_prompt_tokens + weight * (ask.num_prompt_tokens - mean.num_prompt_tokens),
            mean.num_output_tokens + weight * (ask.num_output_tokens - mean.num_output_tokens),
            mean.num_long_tokens
            + weight * ((ask.num_long_tokens or ask.num_output_tokens) - mean.num_long_tokens),
        )

    def ended(self, class_id: str, num_output_tokens: int) -> None:
        """An answer ended by itself or by its limit."""
        self._lengths.setdefault(class_id, OutputLengths()).observe(num_output_tokens)

    def ask(
        self,
        class_id: str,
        num_prompt_tokens: int,
        max_tokens: int,
        block_hashes: Sequence[int] = (),
        block_size: int = 1,
    ) -> admission.Ask:
        """The request as admission sees it, with the answer and the cached part of its prompt that are to be expected.

        A prompt's last token is always computed, and so its block.
        """
        lengths = self._lengths.setdefault(class_id, OutputLengths())
        mean, most = lengths.mean(max_tokens), lengths.expected(max_tokens)
        self._block_size = block_size
        usable = block_hashes[: max(0, num_prompt_tokens - 1) // block_size]
        num_cached = block_size * self._prefixes.num_expected(usable, self._num_workers)
        return admission.Ask(class_id, num_prompt_tokens, mean, num_cached, most)

    def decide(
        self,
        policy: Policy,
        ask: admission.Ask,
        load: Mapping[str, Waiting],
        workers: Sequence[admission.WorkerCapacity],
        num_doors: int,
        now: float,
        num_running: int = 0,
    ) -> admission.Admitted | admission.Refused:
        """Whether the request may enter; `load` is what waits in the pool, before this request. Asked once each.

        `num_running` requests hold a row of a worker.
        """
        self._num_workers = max(1, len(workers))
        self._num_kv_tokens = min((one.num_kv_tokens for one in workers), default=0)
        cost = admission.request_cost(policy, ask)
        self._offered.setdefault(ask.class_id, ArrivalRate(self._opened_at)).add(cost, now)
        supply = self._supply(policy, policy.find(ask.class_id), workers, num_running, now)
        num_fresh = ask.num_prompt_tokens - ask.num_cached_tokens
        prefill_s = min((one.cost_model.prefill_s(num_fresh) for one in workers), default=0.0)
        demands = self._demands(policy, policy.find(ask.class_id), load, num_doors, now)
        answer = admission.decide(policy, ask, demands, supply, prefill_s)
        return self._in_turn(policy, ask, answer, num_doors, now) if isinstance(answer, admission.Refused) else answer

    def _supply(
        self,
        policy: Policy,
        rules: ClassPolicy,
        workers: Sequence[admission.WorkerCapacity],
        num_running: int,
        now: float,
    ) -> admission.Supply:
        """A bound is promised: it reckons with those that run ending later than usual after a burst."""
        supply = admission.supply_for(policy, rules, workers, self._mean, num_running)
        mean = admission.Ask(rules.id, round(self._mean.num_prompt_tokens), round(self._mean.num_output_tokens))
        request_s = num_running * admission.request_cost(policy, mean) / max(supply.rate, admission.MIN_RATE)
        lag_s = self._progress.missing(num_running, request_s, now) * request_s
        return supply if rules.admit_on == "ttft" else replace(supply, lag_s=lag_s)

    def _in_turn(
        self, policy: Policy, ask: admission.Ask, refused: admission.Refused, num_doors: int, now: float
    ) -> admission.Refused:
        """Come back after those of this class and more urgent ones who were told to; within a bound, at most."""
        rules = policy.find(ask.class_id)
        latest_at = now + refused.retry_after_s + rules.max_wait_s
        at = min(max(now + refused.retry_after_s, self._back_at.get(rules.id, now)), latest_at)
        for one in policy.classes:
            if one.rank >= rules.rank:
                known_at = self._back_at.get(one.id, now)
                self._back_at[one.id] = max(known_at, at) + num_doors * refused.takes_s
        return replace(refused, retry_after_s=at - now)

    def _demands(
        self,
        policy: Policy,
        asking: ClassPolicy,
        load: Mapping[str, Waiting],
        num_doors: int,
        now: float,
    ) -> dict[str, admission.Demand]:
        """By class of the policy; what waits under a retired name counts for the class that serves it."""
        sums: dict[str, Waiting] = {one.id: Waiting(0, 0.0) for one in policy.classes}
        for class_id, (num, cost) in load.items():
            try:
                served_as = policy.find(class_id).id
            except KeyError:
                continue
            sums[served_as] = Waiting(sums[served_as].num + num, sums[served_as].cost + cost)
        return {class_id: self._demand(class_id, asking, one, num_doors, now) for class_id, one in sums.items()}

    def _demand(
        self, class_id: str, asking: ClassPolicy, waits: Waiting, num_doors: int, now: float
    ) -> admission.Demand:
        within_s, repeats = admission.bound_s(asking), admission.repeats(asking)
        accepted, offered = self._accepted.get(class_id, NOTHING), self._offered.get(class_id, NOTHING)
        arriving = accepted.flow(now, within_s, repeats)
        usual = accepted.usual(now, arriving)
        return admission.Demand(
            waits.num,
            waits.cost,
            arriving * num_doors,
            offered.flow(now, within_s, repeats) * num_doors,
            usual * num_doors,
            (accepted.flow(now, within_s, 1.0) - usual) * num_doors,
        )
