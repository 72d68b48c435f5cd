"""What the browser receives on `/ws/live/`: JSON messages, told apart by `type`.

The frontend mirrors these types in `frontend/src/api/live.ts`; a test compares the two. Instants are seconds
since the epoch on Redis's clock, durations are seconds, shares run from 0 to 1. None is "not known", never 0.

The server sends `hello` once, `history` once, then `snapshot` a few times a second. The client sends nothing.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Percentiles(Struct, frozen=True, kw_only=True):
    """Nearest-rank percentiles over `num` samples of the window; None without samples."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    num: int = 0


class Objective(Struct, frozen=True, kw_only=True):
    """A class's promise, from the policy. `governing` is the percentile that it is shown by; the attainment judges.
    `kept_again` is the share from which a broken promise counts as kept.
    """

    ttft_s: float
    tpot_s: float
    target: float
    kept_again: float
    governing: Literal["p50", "p95", "p99"]
    max_wait_s: float


class PromiseState(Struct, frozen=True, kw_only=True):
    """Whether one half of the promise (`ttft` or `tpot`) is kept; `promise.py` defines when it breaks."""

    kept: bool
    broken_since: float | None = None
    num_late: int = 0
    num_requests: int = 0
    attainment: float | None = None


class TenantWaiting(Struct, frozen=True, kw_only=True):
    """A tenant in the queue of a class, and why its oldest request waits: `why` in sentences, what it lacks first.

    `predicted_start_s` from now, an estimate: requests that go before it, at the pace of the last 30 s; None where
    that is not known. `share_got` is of the class's tokens in the last minute, `share_due` by weight among the
    tenants that wait or run. A tenant without a waiting request is there for its share; its `reason` is empty.
    """

    tenant: str
    num: int
    num_running: int
    oldest_s: float
    num_ahead: int | None
    predicted_start_s: float | None
    share_got: float | None
    share_due: float | None
    reason: str = ""
    why: tuple[str, ...] = ()


class WaitingView(Struct, frozen=True, kw_only=True):
    """The queue of a class. `waits_s`: longest first, at most 64, to be drawn between 0 and the bound.

    `tenants` holds those whose requests wait longest, then those that had most of the class's tokens of late; a few.
    `num_more` requests of `num_more_tenants` others wait too.
    """

    num: int
    oldest_s: float
    num_late: int
    waits_s: tuple[float, ...] = ()
    tenants: tuple[TenantWaiting, ...] = ()
    num_more: int = 0
    num_more_tenants: int = 0


class ClassLive(Struct, frozen=True, kw_only=True):
    """A class now. `color` is its permanent index 0 to 5; `share_*` are shares of service over the window.

    `num_judged` requests of the window, ended or open, have met or missed the promise; of them `num_overdue` still
    wait for a first token and have missed it already.

    `judged_since`: when the objectives changed, where that is within the window: what they did not judge is in no
    figure. `budget_since`: when the oldest request ended that counts in the budget: 30 days ago, or since the
    objectives are what they are.
    """

    id: str
    rank: int
    color: int
    weight: float
    objective: Objective
    window_s: float
    ttft: Percentiles
    tpot: Percentiles
    ttft_state: PromiseState
    tpot_state: PromiseState
    attainment: float | None
    num_judged: int
    num_late: int
    num_overdue: int
    judged_since: float | None
    budget_left: float | None
    budget_since: float | None
    burn_rate: float | None
    share_due: float
    share_got: float | None
    waiting: WaitingView
    num_running: int
    num_parked: int
    longest_parked_s: float | None
    num_parked_by_memory: int
    tokens_per_s: float
    num_refused: int
    preemptible: bool


class Cell(Struct, frozen=True, kw_only=True):
    """A sequence on a worker: one square of a lane. `state`: prefill, decode or parked."""

    id: str
    class_id: str
    state: Literal["prefill", "decode", "parked"]
    late: bool
    arrived_at: float
    num_prompt_tokens: int
    num_generated_tokens: int
    num_blocks: int


class DeviceLive(Struct, frozen=True, kw_only=True):
    """The device's figures; None where it cannot say."""

    kind: Literal["cuda", "cpu"]
    name: str
    busy: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    energy_estimated: bool = False
    joules_per_1k_tokens: float | None = None


class WorkerLive(Struct, frozen=True, kw_only=True):
    """A worker now. `state`: `live`, `silent` (no word for 3 intervals and 2 s), `draining` or `gone` (its
    lease is over; shown for a minute). Step figures are of its last 10 s, None while it has nothing to do.
    """

    id: str
    state: Literal["live", "silent", "draining", "gone"]
    seen_at: float
    lease_ends_at: float | None
    device: DeviceLive
    policy_version: int
    batch_limit: int
    num_slots: int
    num_running: int
    num_blocks: int
    num_used_blocks: int
    step_p50_s: float | None
    step_p99_s: float | None
    overhead_p50_s: float | None
    tokens_per_s: float
    cells: tuple[Cell, ...] = ()


class Cause(Struct, frozen=True, kw_only=True):
    """One sentence with its time, rendered from scheduler events."""

    at: float
    text: str


class Verdict(Struct, frozen=True, kw_only=True):
    """The page's first sentence, as data. Its figures are the class's: of one half where the promise is kept.

    `kept` names the half nearest its limit, if any has samples. `broken` names the half that burns its budget
    fastest; `num_more` counts the other broken halves; no event explains it when `causes` is empty: say so.
    """

    kind: Literal["kept", "broken", "no_traffic", "no_worker"]
    class_id: str | None = None
    metric: Literal["ttft", "tpot"] | None = None
    since: float | None = None
    num_late: int = 0
    num_requests: int = 0
    attainment: float | None = None
    num_more: int = 0
    causes: tuple[Cause, ...] = ()
    rule_path: str | None = None


class Decision(Struct, frozen=True, kw_only=True):
    """A scheduler event in words; `num_like` counts similar ones folded into it in the last minute."""

    at: float
    kind: str
    reason: str
    class_id: str
    request_id: str
    text: str
    num_like: int = 0


class BatchLimitChange(Struct, frozen=True, kw_only=True):
    """The limit's moves, and the figures that moved it."""

    at: float
    worker: str
    before: int
    after: int
    itl_s: float
    target_s: float


class Point(Struct, frozen=True, kw_only=True):
    """Ten seconds of history. Maps are by class id; percentiles over that interval's samples."""

    at: float
    ttft: dict[str, Percentiles]
    tpot: dict[str, Percentiles]
    tokens_per_s: dict[str, float]
    waiting: dict[str, int]
    step_p50_s: float | None
    step_p99_s: float | None
    batch_limit: float | None
    num_running: float | None
    kv_share: dict[str, float]
    busy: dict[str, float]


class Hello(Struct, frozen=True, kw_only=True, tag="hello", tag_field="type"):
    """The first message: whose pool this is and how often news comes."""

    pool: str
    model: str
    server_time: float
    interval_s: float
    point_s: float
    operator: str


class History(Struct, frozen=True, kw_only=True, tag="history", tag_field="type"):
    """The charts' past, oldest first; later points come with the snapshots."""

    points: tuple[Point, ...]


class LiveSnapshot(Struct, frozen=True, kw_only=True, tag="snapshot", tag_field="type"):
    """Everything the Live page shows now. `*_at`: when a source last spoke; a panel is as old as its source.

    `new_points` are the points that this client has not got (usually none). `number` rises. `num_slots` says
    how many sequences may run at once: the sum of the batch limits of the workers that are not gone.
    """

    at: float
    number: int
    policy_version: int | None
    num_workers: int
    num_workers_on_policy: int
    gateways_at: float | None
    workers_at: float | None
    devices_at: float | None
    verdict: Verdict
    classes: tuple[ClassLive, ...]
    workers: tuple[WorkerLive, ...]
    tokens_per_s: float
    goodput_rps: float | None
    finished_rps: float | None
    step_p50_s: float | None
    step_p99_s: float | None
    batch_limit: float | None
    num_running: int
    num_waiting: int
    num_parked: int
    num_slots: int
    limit_changes: tuple[BatchLimitChange, ...]
    decisions: tuple[Decision, ...]
    new_points: tuple[Point, ...] = ()
