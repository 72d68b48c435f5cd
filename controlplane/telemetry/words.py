"""Events in words, by the one module that renders them."""

from __future__ import annotations

from scheduler_worker.protocol.messages import EventRecord


def render(event: EventRecord) -> str:
    """What happened, and why, with the numbers that decided it."""
    try:
        from scheduler_worker.protocol import reasons
    except ImportError:  # until the module is there
        return f"{event.request_id[:4]} {event.kind}: {event.reason.replace('_', ' ')} {dict(event.numbers)}"
    return reasons.render(event)
