"""`/metrics` in Prometheus' text format. `docs/metrics.md` defines each name; a test compares the two.

Counters and histograms cover what this process has read from the pool's telemetry stream since it started;
every web process reads all of it, so scrape each, and take `max` over instances, never `sum`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from itertools import accumulate
from secrets import compare_digest
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest

from controlplane.common.errors import NotAllowed, NotSignedIn, TidegateError, error_body
from controlplane.common.views import read_only
from controlplane.telemetry import folder
from controlplane.telemetry.schema import ClassLive, LiveSnapshot, WorkerLive
from controlplane.telemetry.totals import Counter, Histograms, Totals

Rows = Iterable[tuple[tuple[str, ...], float | None]]

PREFIX: Final = "tidegate_"
CLASS: Final = ("class",)
WORKER: Final = ("worker",)
FORWARDED: Final = ("X-Forwarded-For", "Forwarded")


@read_only
def metrics(request: HttpRequest) -> HttpResponse:
    """The figures of this process's fold; empty while none runs."""
    if error := _refusal(request):
        answer = JsonResponse(error_body(error), status=error.status)
        if isinstance(error, NotSignedIn):
            answer["WWW-Authenticate"] = "Bearer"
        return answer
    running = folder.current()
    families = [] if running is None else list(collect(running))
    return HttpResponse(generate_latest(_Collected(families)), content_type=CONTENT_TYPE_PLAIN_1_0_0)


def _refusal(request: HttpRequest) -> TidegateError | None:
    """Class names, load and hardware are not everyone's: a token opens the door, or being on this host."""
    token = settings.TIDEGATE.metrics_token
    if token:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if compare_digest(given.encode(), token.encode()):
            return None
        return NotSignedIn("Send Authorization: Bearer and the token of TIDEGATE_METRICS_TOKEN.")
    if _is_from_here(request):
        return None
    return NotAllowed(
        "/metrics answers this host only. Set TIDEGATE_METRICS_TOKEN to scrape it from another."
    )


def _is_from_here(request: HttpRequest) -> bool:
    if any(name in request.headers for name in FORWARDED):
        return False  # a proxy on this host speaks for someone else
    try:
        return ip_address(request.META.get("REMOTE_ADDR", "")).is_loopback
    except ValueError:
        return False


class _Collected:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def collect(running: folder.Folder) -> Iterator[Metric]:
    """All metric families of a folder."""
    now = running.now()
    snapshot = running.fold.snapshot(now, number=0)
    yield from _totals(running.pool, running.fold.totals)
    yield from _classes(running.pool, snapshot.classes)
    yield from _workers(running.pool, snapshot.workers)
    yield from _pool(running.pool, snapshot, now)


def _totals(pool: str, totals: Totals) -> Iterator[Metric]:
    yield _histogram(pool, "ttft_seconds", "Arrival to first token", totals.ttft)
    yield _histogram(pool, "tpot_seconds", "Time per output token after the first", totals.tpot)
    yield _histogram(pool, "e2e_seconds", "Arrival to last token", totals.e2e)
    yield _counter(pool, "requests", "Requests that reached admission", CLASS, totals.arrivals)
    yield _counter(pool, "requests_refused", "Requests refused at admission", CLASS, totals.refused)
    yield _counter(pool, "requests_finished", "Requests that ended", ("class", "outcome"), totals.finished)
    yield _counter(pool, "requests_met", "Ended requests that met all objectives", CLASS, totals.met)
    yield _counter(pool, "output_tokens", "Tokens sent to clients", CLASS, totals.output_tokens)
    yield _counter(pool, "preemptions", "Sequences parked", ("class", "reason"), totals.preemptions)
    yield _counter(pool, "worker_steps", "Forward passes", WORKER, totals.steps)
    yield _counter(pool, "worker_prompt_tokens", "Prompt tokens computed", WORKER, totals.prompt_tokens)
    generated = totals.generated_tokens
    yield _counter(pool, "worker_generated_tokens", "Tokens sampled", ("worker", "class"), generated)


def _classes(pool: str, classes: tuple[ClassLive, ...]) -> Iterator[Metric]:
    def gauge(name: str, words: str, figures: Mapping[str, float | None]) -> Metric:
        return _gauge(pool, name, words, CLASS, (((id_,), figure) for id_, figure in figures.items()))

    yield gauge("waiting_requests", "Waiting now", {one.id: one.waiting.num for one in classes})
    yield gauge(
        "waiting_late_requests", "Waiting past TTFT", {one.id: one.waiting.num_late for one in classes}
    )
    yield gauge("overdue_requests", "No first token, past TTFT", {one.id: one.num_overdue for one in classes})
    yield gauge("oldest_wait_seconds", "Longest wait now", {one.id: one.waiting.oldest_s for one in classes})
    yield gauge("running_requests", "In the running batches", {one.id: one.num_running for one in classes})
    yield gauge("parked_requests", "Preempted, not resumed yet", {one.id: one.num_parked for one in classes})
    yield gauge(
        "attainment_ratio", "Met, of those judged in 5 min", {one.id: one.attainment for one in classes}
    )
    yield gauge(
        "budget_left_ratio", "Error budget left of 30 days", {one.id: one.budget_left for one in classes}
    )
    yield gauge("burn_rate", "Speed at which the budget goes", {one.id: one.burn_rate for one in classes})
    yield gauge(
        "service_share_ratio", "Share of service in 5 min", {one.id: one.share_got for one in classes}
    )
    states = (((one.id, "ttft"), one.ttft_state) for one in classes)
    more = (((one.id, "tpot"), one.tpot_state) for one in classes)
    kept = [(labels, float(state.kept)) for labels, state in (*states, *more)]
    yield _gauge(pool, "promise_kept", "1 while the promise is kept", ("class", "metric"), kept)


def _workers(pool: str, workers: tuple[WorkerLive, ...]) -> Iterator[Metric]:
    present = [worker for worker in workers if worker.state != "gone"]

    def gauge(name: str, words: str, figures: Mapping[str, float | None]) -> Metric:
        return _gauge(pool, name, words, WORKER, (((id_,), figure) for id_, figure in figures.items()))

    yield gauge("worker_batch_limit", "Sequences it may run", {one.id: one.batch_limit for one in present})
    yield gauge("worker_slots", "Sequences it could run", {one.id: one.num_slots for one in present})
    yield gauge("worker_running_requests", "Sequences it runs", {one.id: one.num_running for one in present})
    yield gauge("worker_kv_blocks", "Blocks of its KV cache", {one.id: one.num_blocks for one in present})
    yield gauge("worker_kv_used_blocks", "Used blocks", {one.id: one.num_used_blocks for one in present})
    yield gauge("worker_policy_version", "Policy it runs", {one.id: one.policy_version for one in present})
    yield gauge(
        "worker_busy_ratio", "Device's share of busy time", {one.id: one.device.busy for one in present}
    )
    yield gauge("worker_power_watts", "Device's power", {one.id: one.device.power_w for one in present})
    yield gauge(
        "worker_overhead_seconds", "Step without model", {one.id: one.overhead_p50_s for one in present}
    )
    p50 = [((one.id, "0.5"), one.step_p50_s) for one in present]
    p99 = [((one.id, "0.99"), one.step_p99_s) for one in present]
    yield _gauge(pool, "worker_step_seconds", "Step time", ("worker", "quantile"), (*p50, *p99))
    states = [((one.id, one.state), 1.0) for one in workers]
    yield _gauge(pool, "worker_state", "1 for the state it is in", ("worker", "state"), states)


def _pool(pool: str, snapshot: LiveSnapshot, now: float) -> Iterator[Metric]:
    version = [((), snapshot.policy_version)]
    yield _gauge(pool, "policy_version", "Live policy", (), version)
    sources = (("gateways", snapshot.gateways_at), ("workers", snapshot.workers_at))
    ages = [((name,), None if at is None else now - at) for name, at in sources]
    yield _gauge(pool, "telemetry_age_seconds", "Since a source last spoke", ("source",), ages)


def _gauge(pool: str, name: str, words: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, words, labels=("pool", *labels))
    for values, figure in rows:
        # What is not known is left out; a zero would be a figure.
        if figure is not None:
            family.add_metric((pool, *values), figure)
    return family


def _counter(pool: str, name: str, words: str, labels: tuple[str, ...], counter: Counter) -> Metric:
    family = CounterMetricFamily(PREFIX + name, words, labels=("pool", *labels))
    for values, amount in sorted(counter.items()):
        family.add_metric((pool, *values), amount)
    return family


def _histogram(pool: str, name: str, words: str, histograms: Histograms) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, words, labels=("pool", "class"))
    for class_id, one in sorted(histograms.items()):
        bounds = (*(str(float(bound)) for bound in one.bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(one.counts), strict=True))
        family.add_metric((pool, class_id), buckets, sum_value=one.sum)
    return family
