"""Scheduler events as sentences for operators: who did what, why, with the number that decided.

One sentence for each kind and reason of the core; a clause whose number is missing is left out. Codes that
this build does not know are shown as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from scheduler_worker.protocol.messages import EventRecord

SHORT_ID: Final = 4
Sentence = Callable[[EventRecord], str]


def render(event: EventRecord) -> str:
    """The event in words."""
    sentence = SENTENCES.get((event.kind, event.reason)) or KINDS.get(event.kind)
    if sentence is None:
        return f"{event.kind} ({event.reason})".replace("_", " ").capitalize() + "."
    text = sentence(event)
    return text[:1].upper() + text[1:] if not event.request_id else text


def duration(seconds: float) -> str:
    """Three significant digits, whole milliseconds from 10 ms, minutes from one minute."""
    seconds = abs(seconds)
    if seconds >= 59.95:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds >= 0.9995:
        return f"{_three_digits(seconds)} s"
    if seconds >= 0.00995:
        return f"{seconds * 1000:.0f} ms"
    return f"{_three_digits(seconds * 1000)} ms"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- parts of sentences


def _number(event: EventRecord, name: str) -> float | None:
    value = event.numbers.get(name)
    return float(value) if isinstance(value, int | float) else None


def _text(event: EventRecord, name: str) -> str:
    return str(event.numbers.get(name, ""))


def _span(event: EventRecord, name: str, sentence: str, otherwise: str = "") -> str:
    """`sentence` with the duration in place of `{}`, or `otherwise` without one."""
    seconds = _number(event, name)
    return otherwise if seconds is None else sentence.format(duration(seconds))


def _count(event: EventRecord, name: str, one: str, many: str, otherwise: str) -> str:
    number = _number(event, name)
    if number is None:
        return otherwise
    return f"1 {one}" if number == 1 else f"{number:,.0f} {many}"


def _short(request_id: str) -> str:
    return request_id[:SHORT_ID]


def _who(event: EventRecord) -> str:
    """The event's own request and class, as in `51d0 (high)`."""
    if not event.request_id:
        return f"a request of {event.class_id}" if event.class_id else "a request"
    return f"{_short(event.request_id)} ({event.class_id})" if event.class_id else _short(event.request_id)


def _by(event: EventRecord) -> str:
    """The request that took the room."""
    taker, class_id = _short(_text(event, "by")), _text(event, "by_class")
    if not taker:
        return class_id or "a more urgent request"
    return f"{taker} ({class_id})" if class_id else taker


def _objective(event: EventRecord) -> str:
    """How near the TTFT objective was; `left_s` below 0 is past the last start that would have met it."""
    left_s = _number(event, "left_s")
    if left_s is None:
        return ""
    if left_s < 0:
        return f"its TTFT objective was out of reach since {duration(left_s)}"
    return f"its TTFT objective was {duration(left_s)} away"


def _return(event: EventRecord) -> str:
    """What bringing a parked sequence back costs."""
    cost_s = _number(event, "return_s")
    if cost_s is None:
        return ""
    how = "copying its blocks" if _number(event, "swaps") else "reading its tokens again"
    return f"{how} costs {duration(cost_s)}"


def _sentence(start: str, *clauses: str) -> str:
    """`start: clause, clause.`"""
    said = [one for one in clauses if one]
    return f"{start}: {', '.join(said)}." if said else f"{start}."


def _tokens(event: EventRecord, otherwise: str = "") -> str:
    return _count(event, "num_tokens", "token", "tokens", otherwise)


def _after_tokens(event: EventRecord) -> str:
    tokens = _tokens(event)
    return f" after {tokens}" if tokens else ""


def _come_back(event: EventRecord) -> str:
    return _span(event, "retry_after_s", " Come back in {}.")


# --- sentences


def _arrived(event: EventRecord) -> str:
    return f"{_who(event)} arrived."


def _requeued(event: EventRecord) -> str:
    return f"Requeued: its worker's lease ran out; it goes on{_after_tokens(event) or ' where it was'}."


def _turn(event: EventRecord) -> str:
    return f"Scheduled in its turn{_span(event, 'wait_s', ' after waiting {}')}{_cached(event)}."


def _alone(event: EventRecord) -> str:
    waited = _span(event, "wait_s", " after waiting {}")
    return _sentence(f"Scheduled{waited}{_cached(event)}", "no other class was waiting")


def _cached(event: EventRecord) -> str:
    number = _number(event, "num_cached_tokens")
    return f", {number:,.0f} of its tokens already cached" if number else ""


def _rescue(event: EventRecord) -> str:
    debt = f" The debt is booked to {event.class_id}." if event.class_id else ""
    return _sentence("Scheduled ahead of its turn", _objective(event)) + debt


def _starving(event: EventRecord) -> str:
    return f"Scheduled first: it had waited {_span(event, 'wait_s', '{}', 'long')}, close to its wait bound."


def _preempted_by_priority(event: EventRecord) -> str:
    cheapest = f" This one was the cheapest to bring back: {_return(event)}." if _return(event) else ""
    return _sentence(f"Preempted by {_by(event)}", _objective(event)) + cheapest


def _preempted_by_memory(event: EventRecord) -> str:
    freed = _count(event, "num_blocks", "block", "blocks", "its blocks")
    cost = f" To bring it back, {_return(event)}." if _return(event) else ""
    return (
        f"Preempted by memory: {_by(event)} came first and no block was free; this one gave up {freed}.{cost}"
    )


def _preempted_out_of_memory(event: EventRecord) -> str:
    freed = _count(event, "num_blocks", "block", "blocks", "its blocks")
    return f"Preempted: the device had no memory for a step of so many; this one was last in line and gave up {freed}."


def _not_preempted(why: str) -> Sentence:
    def sentence(event: EventRecord) -> str:
        rows = _count(event, "num_rows", "running sequence", "running sequences", "the running sequences")
        return _sentence(f"Nobody yielded to {_who(event)}", _objective(event), why.format(rows))

    return sentence


def _out_of_blocks(after: str) -> Sentence:
    def sentence(event: EventRecord) -> str:
        missing = _count(event, "num_blocks", "block", "blocks", "blocks")
        return f"{_who(event)} lacks {missing} of KV cache; {after}."

    return sentence


def _resumed(how: str) -> Sentence:
    def sentence(event: EventRecord) -> str:
        return f"Resumed{_span(event, 'parked_s', ' after {} parked')}: {how}."

    return sentence


def _first_token(event: EventRecord) -> str:
    return f"First token{_span(event, 'ttft_s', ' after {}')}."


def _stopped(event: EventRecord) -> str:
    return f"Finished: the model ended its answer{_after_tokens(event)}."


def _length(event: EventRecord) -> str:
    return f"Finished: it reached its limit{' of ' + _tokens(event) if _tokens(event) else ''}."


def _cancelled(event: EventRecord) -> str:
    return f"Cancelled{_after_tokens(event)}."


def _failed(event: EventRecord) -> str:
    return _sentence(f"Failed{_after_tokens(event)}", _text(event, "error"))


def _elsewhere(event: EventRecord) -> str:
    return "Another worker holds it now."


def _limit(why: Sentence) -> Sentence:
    def sentence(event: EventRecord) -> str:
        before, after = _number(event, "before"), _number(event, "after")
        moved = "" if before is None or after is None else f" {before:.0f} → {after:.0f}"
        return _sentence(f"Batch limit{moved}", why(event))

    return sentence


def _itl(relation: str) -> Sentence:
    def clause(event: EventRecord) -> str:
        target = _span(event, "target_s", f", {relation} the {{}} target")
        return _span(event, "itl_s", "ITL p99 averaged {}") + target

    return clause


def _no_memory(event: EventRecord) -> str:
    return "the device ran out of memory"


def _bound_missed(why: Sentence) -> Sentence:
    def sentence(event: EventRecord) -> str:
        waited = _span(event, "waited_s", "has waited {}") or _span(
            event, "parked_s", "has been parked for {}"
        )
        late = _span(event, "late_s", "{} beyond its bound", "beyond its bound")
        return _sentence(f"{_who(event)} {waited or 'waits'}, {late}", why(event))

    return sentence


def _slower(event: EventRecord) -> str:
    factor = _number(event, "slowness")
    if factor is None:
        return "steps took longer than predicted"
    return f"steps took {factor:.2g} × their predicted time"


def _more_urgent(event: EventRecord) -> str:
    """What came of more urgent classes meanwhile, in cost tokens."""
    brought = _count(event, "urgent_tokens", "token", "tokens", "more work than foreseen")
    excess = _count(event, "excess_tokens", "token", "tokens", "")
    margin = _count(event, "margin_tokens", "token", "tokens", "")
    beyond = f", {excess} more than foreseen" if excess else ""
    held_back = f"; the margin was {margin}" if margin else ""
    return f"more urgent requests brought {brought} meanwhile{beyond}{held_back}"


def _estimate(event: EventRecord) -> str:
    return "the wait that was predicted when it was accepted was too short"


def _slots_busy(whose: str) -> Sentence:
    def sentence(event: EventRecord) -> str:
        slots = _count(event, "num_slots", "slot", "slots", "slots")
        holders = f", {_text(event, 'holders')}," if _text(event, "holders") else ""
        waiting = _count(event, "num_waiting", "request", "requests", "requests")
        of_class = f" of {event.class_id}" if event.class_id else ""
        longest = _span(event, "oldest_wait_s", ", the longest for {}")
        return f"all {slots}{whose} were busy{holders} while {waiting}{of_class} waited{longest}."

    return sentence


def _steps_slow(event: EventRecord) -> str:
    worker = f" of {_text(event, 'worker')}" if _text(event, "worker") else ""
    objective = _span(event, "tpot_s", " of {}")
    batch = _count(event, "num_running", "sequence", "sequences", "")
    with_batch = f", with {batch} in the batch" if batch else ""
    took = _span(event, "step_s", "took {} at the median, longer", "took longer")
    return (
        f"the steps{worker} {took} than {_possessive(event.class_id)} TPOT objective{objective}{with_batch}."
    )


def _restarted(event: EventRecord) -> str:
    away = _span(event, "away_s", " after {} without one", "")
    return f"a gateway restarted: it began to serve{away}."


def _policy(event: EventRecord) -> str:
    version = _number(event, "version")
    return "A new policy took effect." if version is None else f"Policy v{version:.0f} took effect."


def _refused(why: Sentence) -> Sentence:
    def sentence(event: EventRecord) -> str:
        return _sentence("Refused", why(event)) + _come_back(event)

    return sentence


def _predicted(what: str, limit: str) -> Sentence:
    def clause(event: EventRecord) -> str:
        predicted = _span(event, "predicted_s", f"the predicted {what} of {{}}", f"the predicted {what}")
        bound = _span(event, "bound_s", " of {}")
        return f"{predicted} exceeds {_possessive(event.class_id)} {limit}{bound}"

    return clause


def _possessive(class_id: str) -> str:
    return f"{class_id}'s" if class_id else "its"


def _queue_full(event: EventRecord) -> str:
    limit = _number(event, "queue_limit")
    full = f"{_possessive(event.class_id)} queue is full"
    return full if limit is None else f"{full}, {limit:,.0f} requests wait"


def _quota(event: EventRecord) -> str:
    return f"{event.tenant or 'the tenant'} has used its quota"


def _too_long(event: EventRecord) -> str:
    if error := _text(event, "error"):
        return error
    prompt = _count(event, "num_prompt_tokens", "token", "tokens", "")
    limit = _count(event, "max_prompt_tokens", "token", "tokens", "")
    return (
        f"its prompt{' of ' + prompt if prompt else ''} is longer than allowed{': ' + limit if limit else ''}"
    )


def _worker_failed(event: EventRecord) -> str:
    worker = _text(event, "worker")
    ended = _sentence(
        f"Worker {worker} ended itself" if worker else "A worker ended itself", _text(event, "error")
    )
    return f"{ended} Its requests go on elsewhere, after the last token that was published."


SENTENCES: Final[dict[tuple[str, str], Sentence]] = {
    ("queued", "arrived"): _arrived,
    ("queued", "requeued"): _requeued,
    ("scheduled", "turn"): _turn,
    ("scheduled", "rescue"): _rescue,
    ("scheduled", "starving"): _starving,
    ("scheduled", "only_class_waiting"): _alone,
    ("preempted", "preempted_by_priority"): _preempted_by_priority,
    ("preempted", "preempted_by_memory"): _preempted_by_memory,
    ("preempted", "out_of_memory"): _preempted_out_of_memory,
    ("not_preempted", "as_urgent"): _not_preempted("{} were at least as urgent"),
    ("not_preempted", "class_may_not_yield"): _not_preempted("{} may not be preempted under this policy"),
    ("not_preempted", "past_max_generated"): _not_preempted("{} had made too many tokens to be parked"),
    ("not_preempted", "past_max_preemptions"): _not_preempted("{} had been parked often enough"),
    ("not_preempted", "within_min_residency"): _not_preempted("{} had only just begun"),
    ("not_preempted", "no_blocks"): _not_preempted("{} together would not have freed enough blocks"),
    ("out_of_blocks", "no_blocks"): _out_of_blocks("others may pass it"),
    ("out_of_blocks", "head_holds_blocks"): _out_of_blocks(
        "others passed it often enough, so blocks are held for it"
    ),
    ("resumed", "swapped_in"): _resumed("its blocks were copied back"),
    ("resumed", "recomputes"): _resumed("its tokens are read again"),
    ("finished", "stopped"): _stopped,
    ("finished", "length"): _length,
    ("finished", "cancelled"): _cancelled,
    ("finished", "failed"): _failed,
    ("finished", "claimed_elsewhere"): _elsewhere,
    ("batch_limit_changed", "itl_above_band"): _limit(_itl("over")),
    ("batch_limit_changed", "itl_below_band"): _limit(_itl("well under")),
    ("batch_limit_changed", "out_of_memory"): _limit(_no_memory),
    ("bound_missed", "estimate_was_off"): _bound_missed(_estimate),
    ("bound_missed", "more_urgent_work"): _bound_missed(_more_urgent),
    ("bound_missed", "worker_slowed"): _bound_missed(_slower),
    ("policy_applied", "policy_published"): _policy,
    ("slots_busy", "all_slots"): _slots_busy(""),
    ("slots_busy", "batch_limit"): _slots_busy(" of the batch limit"),
    ("steps_slow", "step_over_tpot"): _steps_slow,
    ("gateway_restarted", "restarted"): _restarted,
    ("rejected", "predicted_ttft"): _refused(_predicted("first token", "TTFT objective")),
    ("rejected", "predicted_wait"): _refused(_predicted("wait", "bound")),
    ("rejected", "queue_full"): _refused(_queue_full),
    ("rejected", "tenant_quota"): _refused(_quota),
    ("rejected", "too_long"): _refused(_too_long),
}

KINDS: Final[dict[str, Sentence]] = {"first_token": _first_token, "worker_failed": _worker_failed}
"""Kinds that need no reason to be told."""


# --- why a request waits

NO_WORKER: Final = "no_worker"
WAIT_REASONS: Final = (
    "claimed",
    "not_claimed",
    "others_first",
    "step_full",
    "no_blocks",
    "batch_limit",
    "all_slots",
    "draining",
    NO_WORKER,
)
"""The core's codes for why the oldest request of a tenant does not start now, the mildest first."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A tenant's oldest waiting request of a class. Shares are of the class's tokens in the last minute, 0 to 1."""

    class_id: str
    tenant: str
    reason: str
    num_ahead: int | None
    numbers: Mapping[str, float | int | str]
    share_got: float | None = None
    share_due: float | None = None


def waiting(wait: Wait) -> tuple[str, ...]:
    """Why it waits, in sentences: what it lacks, then who goes first and why."""
    event = EventRecord(
        at=0.0, kind="waiting", reason=wait.reason, class_id=wait.class_id, numbers=dict(wait.numbers)
    )
    room = ROOM.get(wait.reason, _unknown)(event)
    if wait.reason in ("claimed", "draining", NO_WORKER):
        return (room,)
    said = (_class_first(event), _tenant_first(wait, event))
    turn = tuple(one for one in said if one) or ((_place(wait),) if _place(wait) else ())
    return (room, *turn)


def _unknown(event: EventRecord) -> str:
    return f"{event.reason.replace('_', ' ').capitalize()}."


def _busy(whose: str) -> Sentence:
    def sentence(event: EventRecord) -> str:
        num = _number(event, "num_running")
        holders = f", {_text(event, 'holders')}" if _text(event, "holders") else ""
        if num is not None and (num_claimed := _number(event, "num_free_slots") or 0.0):
            rest = "the other is" if num_claimed == 1 else f"the other {num_claimed:,.0f} are"
            verb = "is" if num == 1 else "are"
            return f"{num:,.0f} of {num + num_claimed:,.0f} slots{whose} {verb} busy{holders}; {rest} claimed already."
        if num == 1:
            return f"The one slot{whose} is busy{holders}."
        return f"All{'' if num is None else f' {num:,.0f}'} slots{whose} are busy{holders}."

    return sentence


def _free_slots(event: EventRecord) -> str:
    return _count(event, "num_free_slots", "slot is free", "slots are free", "slots are free")


def _not_claimed(event: EventRecord) -> str:
    return f"Not claimed yet: {_free_slots(event)}, and a worker claims it before one of its next steps."


def _others_first(event: EventRecord) -> str:
    return f"{_free_slots(event).capitalize()}, but not for it: others go first."


def _step_full(event: EventRecord) -> str:
    budget = _count(event, "num_step_tokens", "token", "tokens", "")
    each = f" of {budget} each" if budget else ""
    return f"{_free_slots(event).capitalize()}, but prompts that go first fill the next two steps{each}."


def _no_blocks(event: EventRecord) -> str:
    missing = _count(event, "num_blocks", "block", "blocks", "blocks")
    return f"It lacks {missing} of KV cache, though {_free_slots(event)}."


ROOM: Final[dict[str, Sentence]] = {
    "claimed": lambda _: "A worker has claimed it: it starts with one of the next steps.",
    "not_claimed": _not_claimed,
    "others_first": _others_first,
    "step_full": _step_full,
    "no_blocks": _no_blocks,
    "batch_limit": _busy(" of the batch limit"),
    "all_slots": _busy(""),
    "draining": lambda _: "Every worker is draining: none takes another request.",
    NO_WORKER: lambda _: "No worker takes requests now.",
}


def _turn_of(event: EventRecord, name: str) -> str:
    """Why those go first that do not go by what they were served."""
    urgent = "its TTFT objective is near and can still be met"
    return {"rescue": urgent, "starving": "it has waited almost to its bound"}.get(_text(event, name), "")


def _class_first(event: EventRecord) -> str:
    first = _text(event, "first_class")
    if not first:
        return ""
    num = _count(event, "num_first_class", "request", "requests", "requests")
    verb = "goes" if _number(event, "num_first_class") == 1 else "go"
    if why := _turn_of(event, "class_turn"):
        return f"{num[:1].upper()}{num[1:]} of {first} {verb} first: {why}."
    return f"{num} of {first} {verb} first: by weight, {first} has had less service than {event.class_id}."


def _tenant_first(wait: Wait, event: EventRecord) -> str:
    first = _text(event, "first_tenant")
    if not first:
        return ""
    if why := _turn_of(event, "tenant_turn"):
        return f"{first} goes first: {why}."
    lead = _count(event, "lead_tokens", "token", "tokens", "")
    if not lead:
        return f"{first} goes first: both have had as much of {wait.class_id}, and its turn is before."
    got, due = wait.share_got, wait.share_due
    if got is not None and due is not None and got > due:
        shares = f"{got * 100:.0f} % of the class's tokens in the last minute against {due * 100:.0f} %"
        return f"{first} and {wait.tenant} share {wait.class_id}; {wait.tenant} used {shares}, so {first} goes first."
    return f"{first} goes first: by weight, {wait.tenant} has had {lead} more of {wait.class_id}."


def _place(wait: Wait) -> str:
    """Where it stands when none of another class or tenant is known to go first."""
    if wait.num_ahead is None:
        return "Many requests go first."
    if wait.num_ahead == 0:
        return "It is next in line." if wait.reason != "not_claimed" else ""
    mine = "request goes" if wait.num_ahead == 1 else "requests go"
    return f"{wait.num_ahead:,} of {wait.tenant}'s own {mine} first."
