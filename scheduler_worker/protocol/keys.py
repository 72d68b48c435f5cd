"""Every Redis key: its name, what it holds, who owns it and when it expires. Nobody else spells a key.

A pool's keys share the hash tag `{tg:<pool>}`, so that the scripts stay on one node of a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PAYLOAD_TTL_S: Final = 48 * 3600
RESERVATION_TTL_S: Final = 5.0
WORKER_LEASE_S: Final = 5.0
GATEWAY_LEASE_S: Final = 10.0
TELEMETRY_MAX_ENTRIES: Final = 2_000
CHANGES_MAX_ENTRIES: Final = 100_000
OUTPUT_TTL_S: Final = 24 * 3600
ARRIVALS_MAX_ENTRIES: Final = 200_000


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One row of the table. `owner` is the only one that deletes it; `expiry` in words."""

    template: str
    kind: str
    holds: str
    owner: str
    expiry: str

    def of(self, pool: str, *parts: str) -> str:
        """The key's name for a pool and its other parts, in the template's order."""
        return self.template.format(pool, *parts)


HEADERS: Final = KeySpec(
    "{{tg:{0}}}:headers", "hash", "waiting Header by request id", "scripts enqueue, claim, cancel, requeue", "never"
)
CHANGES: Final = KeySpec(
    "{{tg:{0}}}:changes", "stream", "changes of the queue: op, id, header", "scripts", "trimmed to 100,000 entries"
)
SEQUENCE: Final = KeySpec("{{tg:{0}}}:arrivals:number", "string", "the last arrival number", "enqueue", "never")
RESERVATIONS: Final = KeySpec(
    "{{tg:{0}}}:reservations", "hash", "request id → class, cost", "reserve, enqueue", "5 s each, by the scripts"
)
RESERVATION_ENDS: Final = KeySpec(
    "{{tg:{0}}}:reservation-ends", "sorted set", "request id → end of its reservation", "reserve, enqueue", "5 s each"
)
CLASS_LOAD: Final = KeySpec(
    "{{tg:{0}}}:class-load", "hash", "`class:num`, `class:cost` of waiting and reserved requests", "scripts", "never"
)
PAYLOAD: Final = KeySpec(
    "{{tg:{0}}}:payload:{1}", "string", "Payload of a request", "gateway (completion deletes)", "48 h"
)
TOKENS: Final = KeySpec(
    "{{tg:{0}}}:tokens:{1}", "string", "published tokens, uint32 LE, appended", "publish (completion deletes)", "48 h"
)
CLAIMS: Final = KeySpec(
    "{{tg:{0}}}:claims",
    "hash",
    "request id → worker, cancelled, Header",
    "claim, publish, requeue",
    "ends with the claim",
)
CLAIMED_BY: Final = KeySpec(
    "{{tg:{0}}}:claimed:{1}",
    "hash",
    "request id → attempt a worker holds",
    "claim, publish, requeue",
    "ends with the claims",
)
WORKER_LEASES: Final = KeySpec(
    "{{tg:{0}}}:worker-leases", "sorted set", "worker → end of its lease", "claim, publish, renew, requeue", "5 s each"
)
GATEWAY_LEASES: Final = KeySpec(
    "{{tg:{0}}}:gateway-leases", "sorted set", "gateway → end of its lease", "gateway", "10 s each"
)
OUTPUT: Final = KeySpec(
    "{{tg:{0}}}:out:{1}", "stream", "Frame and Requeued entries of one gateway", "publish; its gateway trims", "24 h"
)
OWNED: Final = KeySpec(
    "{{tg:{0}}}:owned:{1}", "hash", "request id → Header of what a gateway accepted", "enqueue, finish", "24 h"
)
POLICY: Final = KeySpec("{{tg:{0}}}:policy", "string", "PolicyAnnouncement, live", "policies service", "never")
WORKER_INFO: Final = KeySpec("{{tg:{0}}}:worker:{1}", "string", "WorkerInfo", "worker", "10 s, renewed")
WORKER_CONTROL: Final = KeySpec(
    "{{tg:{0}}}:control:{1}", "string", "drain or resume, for one worker", "fleet service", "24 h"
)
DRAIN: Final = b"drain"
"""The value of `WORKER_CONTROL` that lets a worker take no new request."""
DRAIN_TTL_S: Final = 24 * 3600
"""How long the order holds; what is left of it says when it was given."""

TELEMETRY: Final = KeySpec(
    "{{tg:{0}}}:telemetry", "stream", "WorkerTelemetry and GatewayTelemetry", "worker, gateway", "trimmed to 2,000"
)
TELEMETRY_LEADER: Final = KeySpec(
    "{{tg:{0}}}:telemetry-leader", "string", "the web process that folds telemetry", "telemetry", "2.5 s, renewed"
)
TELEMETRY_WATCHED: Final = KeySpec(
    "{{tg:{0}}}:telemetry-watched", "string", "someone looks at the live page", "telemetry", "10 s, renewed"
)
TELEMETRY_BROKEN: Final = KeySpec(
    "{{tg:{0}}}:telemetry-broken",
    "string",
    "BrokenPromises: since when promises are broken, and why",
    "telemetry",
    "15 min, renewed",
)
ARRIVALS: Final = KeySpec(
    "{{tg:{0}}}:arrivals", "stream", "compact arrivals, refused ones too, for what-if", "gateway", "trimmed to 200,000"
)
QUOTA: Final = KeySpec(
    "{{tg:{0}}}:quota:{1}", "hash", "what is left of a tenant's requests and tokens per minute", "gateway", "1 h unused"
)

TABLE: Final[tuple[KeySpec, ...]] = (
    HEADERS,
    CHANGES,
    SEQUENCE,
    RESERVATIONS,
    RESERVATION_ENDS,
    CLASS_LOAD,
    PAYLOAD,
    TOKENS,
    CLAIMS,
    CLAIMED_BY,
    WORKER_LEASES,
    GATEWAY_LEASES,
    OUTPUT,
    OWNED,
    POLICY,
    WORKER_INFO,
    WORKER_CONTROL,
    TELEMETRY,
    TELEMETRY_LEADER,
    TELEMETRY_WATCHED,
    TELEMETRY_BROKEN,
    ARRIVALS,
    QUOTA,
)
