"""Every message that crosses a process, as msgpack with a schema version.

An unknown version is refused with `UnknownVersion`; an unknown field is ignored. Instants (`*_at`) are seconds
since the epoch on Redis's clock; durations (`*_s`) are seconds.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

SCHEMA_VERSION: Final = 1


class ProtocolError(ValueError):
    """A message that cannot be understood. Not worth a retry."""


class UnknownVersion(ProtocolError):
    """A message of a schema version that this build does not know."""

    def __init__(self, message: str, version: object) -> None:
        super().__init__(
            f"{message} has schema version {version!r}; this build reads {SCHEMA_VERSION}. "
            "Upgrade the older of the two processes."
        )


class Message(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all messages: `v` is the schema version."""

    v: int = SCHEMA_VERSION


M = TypeVar("M", bound=Message)
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type[Message], msgspec.msgpack.Decoder[Any]] = {}


def encode(message: Message) -> bytes:
    """The message as msgpack."""
    return _ENCODER.encode(message)


def decode(kind: type[M], data: bytes) -> M:
    """Read a message of a known kind; raises `UnknownVersion` or `ProtocolError`."""
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(kind)
    try:
        message: M = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise _why_not(kind, data, error) from error
    if message.v != SCHEMA_VERSION:
        raise UnknownVersion(kind.__name__, message.v)
    return message


def _why_not(kind: type[Message], data: bytes, error: Exception) -> ProtocolError:
    """A newer schema often fails on its fields first: name the version when there is one."""
    try:
        raw = msgspec.msgpack.decode(data)
    except msgspec.DecodeError:
        raw = None
    version = raw.get("v") if isinstance(raw, dict) else None
    if version is not None and version != SCHEMA_VERSION:
        return UnknownVersion(kind.__name__, version)
    return ProtocolError(f"not a {kind.__name__}: {error}")


class SamplingParams(Struct, frozen=True, kw_only=True):
    """How the next token is chosen, with OpenAI's and transformers' meanings.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `logprobs` is the number of
    alternatives to report beside the chosen token, None for no report. `stop_token_ids` end the sequence as EOS
    does; `ignore_eos` switches off the model's own EOS only. `seed` makes the tokens a function of the request.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()


class TokenLogprobs(Struct, frozen=True):
    """Natural logarithms of the chosen token's probability and of the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Header(Message, frozen=True, kw_only=True):
    """A waiting request without its text: the fields of `core.sequence.SequenceHeader`, and who accepted it.

    `arrival_number` is 0 until the enqueue script assigns it. `cost` is what the reservation charged to its
    class's load, in the policy's token costs; the scripts take it off again when a worker claims the request.
    """

    request_id: str
    class_id: str
    tenant: str
    gateway: str
    arrived_at: float
    num_prompt_tokens: int
    max_tokens: int
    arrival_number: int = 0
    num_generated_tokens: int = 0
    block_hashes: tuple[int, ...] = ()
    tenant_weight: float = 1.0
    attempt: int = 0
    arm: str = ""
    cost: float = 0.0


class Payload(Message, frozen=True, kw_only=True):
    """What a worker needs to compute a request: token ids, little-endian uint32, and how to sample."""

    request_id: str
    token_ids: bytes
    sampling: SamplingParams


class Timings(Struct, frozen=True, kw_only=True):
    """The worker's breakdown of one request, in seconds; None for a part that was not reached."""

    queue_s: float | None = None
    formation_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    parked_s: float = 0.0
    num_preemptions: int = 0
    num_cached_tokens: int = 0


class FrameRow(Struct, frozen=True, kw_only=True):
    """One request's share of a step. `offset` counts the tokens generated before `token_ids`.

    `finish` is empty while the sequence goes on, else a `FinishReason` value.
    """

    request_id: str
    attempt: int
    offset: int
    token_ids: tuple[int, ...] = ()
    finish: str = ""
    error: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    timings: Timings | None = None


class Frame(Message, frozen=True, kw_only=True):
    """Everything one step produced for one gateway: an entry of that gateway's output stream."""

    worker: str
    step: int
    published_at: float
    rows: tuple[FrameRow, ...]


class Requeued(Message, frozen=True, kw_only=True):
    """An entry of the output stream: from here on only `attempt` counts, and it goes on after `offset` tokens."""

    request_id: str
    attempt: int
    offset: int


class EventRecord(Struct, frozen=True, kw_only=True):
    """A scheduler event on the wire: `kind` and `reason` are the core's codes; `reasons.py` renders them."""

    at: float
    kind: str
    reason: str
    request_id: str = ""
    class_id: str = ""
    tenant: str = ""
    numbers: dict[str, float | int | str] = field(default_factory=dict)


class RunningRow(Struct, frozen=True, kw_only=True):
    """One sequence on a worker: `state` is `prefill`, `decode` or `parked`."""

    request_id: str
    class_id: str
    state: str
    arrived_at: float
    num_prompt_tokens: int
    num_generated_tokens: int
    num_blocks: int
    late: bool = False
    parked_at: float | None = None
    by_memory: bool = False


class TenantLoad(Struct, frozen=True, kw_only=True):
    """One tenant in a class as one worker sees it: what waits, why the oldest does, what it was served of late.

    `reason` is the core's code, rendered by `reasons.waiting`; empty where nothing waits. `recent_tokens` are cost
    tokens of the last minute on this worker; `share_due` is its weight among the tenants that wait or run.
    """

    tenant: str
    num_waiting: int = 0
    num_running: int = 0
    oldest_wait_s: float = 0.0
    num_ahead: int | None = None
    reason: str = ""
    numbers: dict[str, float | int | str] = field(default_factory=dict)
    recent_tokens: float = 0.0
    share_due: float | None = None


class ClassLoad(Struct, frozen=True, kw_only=True):
    """A class as one worker's mirror sees it; `waits_s` longest first, at most 64.

    `tenants`: those that wait longest, then those that were served most of late; a few. `num_tenants` wait in all.
    `recent_tokens` are cost tokens of the last minute, of all tenants.
    """

    class_id: str
    num_waiting: int
    num_running: int
    num_parked: int
    oldest_wait_s: float = 0.0
    num_late: int = 0
    waits_s: tuple[float, ...] = ()
    service_tokens: float = 0.0
    tenants: tuple[TenantLoad, ...] = ()
    num_tenants: int = 0
    recent_tokens: float = 0.0


class Device(Struct, frozen=True, kw_only=True):
    """The device's own figures; None where it cannot say. `busy` is the share of time with work, 0 to 1.

    `kind` is `cuda` or `cpu`; `energy_j` counts up since start, `energy_estimated` when it is a model, not a meter.
    """

    kind: str
    name: str
    busy: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    energy_estimated: bool = False


class WorkerInfo(Message, frozen=True, kw_only=True):
    """What a worker announces under its own key while its lease lives: the gateway admits by it."""

    worker: str
    pool: str
    model: str
    started_at: float
    num_slots: int
    num_blocks: int
    block_size: int
    max_model_len: int
    dtype: str = ""
    attention_backend: str = ""
    cost_model: dict[str, float] = field(default_factory=dict)
    policy_version: int = 0
    draining: bool = False


class WorkerTelemetry(Message, frozen=True, kw_only=True):
    """A worker's state, a few times a second. Step times are percentiles over the steps since the last message."""

    worker: str
    pool: str
    at: float
    sequence: int
    policy_version: int
    device: Device
    batch_limit: int
    num_slots: int
    num_running: int
    num_blocks: int
    num_used_blocks: int
    num_steps: int
    interval_s: float
    num_prompt_tokens: int
    num_generated_tokens: dict[str, int]
    batch_limit_itl_s: float | None = None
    batch_limit_target_s: float | None = None
    step_p50_s: float | None = None
    step_p99_s: float | None = None
    overhead_p50_s: float | None = None
    rows: tuple[RunningRow, ...] = ()
    classes: tuple[ClassLoad, ...] = ()
    events: tuple[EventRecord, ...] = ()


class LatencySample(Struct, frozen=True, kw_only=True):
    """One finished (or first-token) request as the gateway measured it: headers in → bytes written.

    `met` is None until the request has ended; then whether all objectives of its class were met.
    """

    at: float
    class_id: str
    tenant: str
    request_id: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    met: bool | None = None
    outcome: str = ""


class GatewayTelemetry(Message, frozen=True, kw_only=True):
    """A gateway's samples since its last message. `first_tokens` and `finished` are disjoint kinds of sample:
    a request appears once in each. `arrivals` counts by class; `refused` by class, with events saying why.

    `overdue` and `missed` are of `at`, by class: open requests that wait for their first token beyond their TTFT
    objective, and all open requests that have missed it, those with a late first token included. A request is in
    them until the message that has its own sample."""

    gateway: str
    pool: str
    at: float
    sequence: int
    interval_s: float
    open_streams: int
    arrivals: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    output_tokens: dict[str, int] = field(default_factory=dict)
    first_tokens: tuple[LatencySample, ...] = ()
    finished: tuple[LatencySample, ...] = ()
    overdue: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()


class PolicyAnnouncement(Message, frozen=True, kw_only=True):
    """The live policy of a pool. `document` is the JSON of `core.policy.Policy`."""

    version: int
    document: str
    published_at: float


class CompletionRecord(Message, frozen=True, kw_only=True):
    """How a request ended, for its row in Postgres: sent in batches, applied at least once, idempotent.

    `state` is `succeeded`, `failed`, `cancelled`; `finish_reason` is OpenAI's. `text` is empty where the tenant
    keeps no payload.
    """

    request_id: str
    state: str
    finish_reason: str
    finished_at: float
    num_prompt_tokens: int
    num_output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    first_token_at: float | None = None
    post_s: float | None = None
    worker: str = ""
    attempt: int = 0
    text: str = ""
    error: str = ""
    timings: Timings | None = None

