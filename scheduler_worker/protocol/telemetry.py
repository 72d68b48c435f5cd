"""An entry of the telemetry stream (`keys.TELEMETRY`): which message it is, and the message.

    fields = stream_fields(message)
    redis.xadd(keys.TELEMETRY.of(pool), fields, maxlen=keys.TELEMETRY_MAX_ENTRIES, approximate=True)

Every source speaks at least once a second, also when nothing happens: silence is what makes it look lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scheduler_worker.protocol.messages import (
    GatewayTelemetry,
    ProtocolError,
    WorkerTelemetry,
    decode,
    encode,
)

KIND: Final = b"kind"
DATA: Final = b"data"
_KINDS: Final[dict[bytes, type[WorkerTelemetry] | type[GatewayTelemetry]]] = {
    b"worker": WorkerTelemetry,
    b"gateway": GatewayTelemetry,
}


def stream_fields(message: WorkerTelemetry | GatewayTelemetry) -> dict[bytes, bytes]:
    """The fields of the entry that carries `message`."""
    kind = b"worker" if isinstance(message, WorkerTelemetry) else b"gateway"
    return {KIND: kind, DATA: encode(message)}


def read_fields(fields: Mapping[bytes, bytes]) -> WorkerTelemetry | GatewayTelemetry:
    """The message of an entry; raises `ProtocolError` for one that this build does not know."""
    kind = _KINDS.get(fields.get(KIND, b""))
    if kind is None:
        known = ", ".join(name.decode() for name in _KINDS)
        raise ProtocolError(f"telemetry of kind {fields.get(KIND, b'')!r}; this build reads {known}")
    return decode(kind, fields.get(DATA, b""))
