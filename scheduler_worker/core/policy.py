"""The policy document: the one definition, validation and JSON Schema of what operators tune.

A policy belongs to a pool: a model and its workers. Class ids are permanent. A removed class stays in `retired`
with the class that serves its waiting requests from then on, resolved when read.

Validation collects every mistake with its path; see `check_policy`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

MAX_CLASSES: Final = 32
ClassId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Seconds = Annotated[float, Field(gt=0, le=604_800, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Slo(_Section):
    """A class's promise: `target` is the share of requests that meet TTFT and TPOT, both."""

    ttft_s: Seconds = Field(title="TTFT objective", description="Time from arrival to the first token.")
    tpot_s: Seconds = Field(title="TPOT objective", description="Mean time per output token after the first.")
    target: Share = Field(
        default=0.99, title="Promised for", description="Share of requests that meet both objectives."
    )
    e2e_s: Seconds | None = Field(
        default=None, title="End-to-end objective", description="Time from arrival to the last token."
    )
    e2e_target: Share | None = Field(
        default=None,
        title="End-to-end promised for",
        description="Share that meets the end-to-end objective.",
    )


class Preemption(_Section):
    """Whether and how far a class yields its slots and blocks to a more urgent one."""

    preemptible: bool = Field(
        default=True, title="May be preempted", description="By a more urgent class, when it needs the room."
    )
    max_generated_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=50, title="…until it has made", description="Then it may finish."
    )
    max_preemptions: Annotated[int, Field(ge=0, le=100)] = Field(
        default=2, title="…at most", description="Times a sequence may be parked by priority."
    )
    min_residency_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.0, title="…after at least", description="Time on the GPU before it may be parked (again)."
    )


class ClassPolicy(_Section):
    """One priority class. Rank 0 is the most urgent; weights are shares of service when all are backlogged."""

    id: ClassId = Field(title="Name", description="Permanent. Lower-case letters, digits, - and _.")
    rank: Annotated[int, Field(ge=0, le=1000)] = Field(title="Rank", description="0 is the most urgent.")
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = Field(
        title="Weight", description="Share of service when all classes are backlogged."
    )
    slo: Slo
    max_wait_s: Seconds = Field(
        default=30.0, title="Wait bound", description="No accepted request waits longer for its first step."
    )
    max_parked_s: Seconds = Field(
        default=30.0, title="Parked bound", description="No preempted request waits longer to resume."
    )
    admit_on: Literal["ttft", "max_wait"] = Field(
        default="max_wait",
        title="Refuse when",
        description="The predicted start would miss the TTFT objective, or the wait bound.",
    )
    queue_limit: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=10_000, title="Queue limit", description="Waiting requests beyond it are refused."
    )
    max_prompt_tokens: Tokens | None = Field(
        default=None, title="Prompts longer than", description="Are refused. Empty: the model's context."
    )
    max_output_tokens: Tokens | None = Field(
        default=None,
        title="Answers at most",
        description="A larger max_tokens is refused. Empty: the context.",
    )
    preemption: Preemption = Preemption()


class BatchLimit(_Section):
    """How many sequences one worker runs at once, steered by measured inter-token latency.

    A sample is the p99 over decoding sequences of their mean ITL over `itl_window_steps`; the mean of
    `num_samples` samples against the target decides, and the history is cleared after each change.
    """

    min_slots: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=8, title="At least", description="Slots per worker."
    )
    max_slots: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        default=None, title="At most", description="Slots per worker. Empty: all the engine has."
    )
    itl_target_s: Seconds | None = Field(
        default=None,
        title="ITL p99 target",
        description="Empty: the tightest running TPOT objective, divided by the upper edge of the band.",
    )
    num_samples: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=20, title="Samples averaged", description="Before a decision."
    )
    itl_window_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10, title="Steps a sample", description="Over which a sequence's ITL is averaged."
    )
    shrink_above: Annotated[float, Field(ge=1, le=100)] = Field(
        default=1.2, title="Shrink above", description="Times the target."
    )
    shrink_by: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=4, title="Shrink by", description="Slots."
    )
    grow_below: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7, title="Grow below", description="Times the target."
    )
    grow_by: Annotated[int, Field(ge=1, le=65_536)] = Field(default=4, title="Grow by", description="Slots.")


class Step(_Section):
    """What one scheduler iteration may hold."""

    max_num_batched_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=2048, title="Token budget", description="Tokens in one step, decodes included."
    )
    max_chunk_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=512, title="Chunk at most", description="Tokens of one prompt in one step."
    )
    rescue_within_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=0.05, title="TTFT rescue from", description="Time left to the objective, beyond the prefill."
    )


class Fairness(_Section):
    """What a token costs and how far a class may run ahead."""

    prompt_token_cost: Factor = Field(default=1.0, title="A prompt token costs")
    output_token_cost: Factor = Field(default=2.0, title="An output token costs")
    cached_token_cost: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.1, title="A cached prompt token costs"
    )
    max_lead_tokens: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=20_000.0,
        title="Lead at most",
        description="Weighted cost a class may run ahead of the least-served backlogged one by rescues.",
    )
    tenants: Literal["equal", "own_weights"] = Field(
        default="own_weights", title="Tenants inside a class", description="How they share."
    )


class Starvation(_Section):
    """The tier of those close to their wait bound."""

    enabled: bool = Field(default=True, title="Serve first who nears the bound")
    guard: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, title="Guard", description="Share of the wait bound, before it, in which the tier acts."
    )


class Admission(_Section):
    """Who is refused at the door, with a time to come back."""

    enabled: bool = Field(default=True, title="Refuse what cannot be served in time")
    wait_factor: Factor = Field(
        default=1.0, title="Refuse when the predicted wait exceeds", description="Times the bound."
    )
    capacity_margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, title="Capacity held back", description="Share of the predicted rate."
    )


class Memory(_Section):
    """How KV-cache blocks are promised."""

    reserve_growth: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        title="Growth reserved",
        description="Share of the expected output (min of max_tokens and the class's p90) kept free.",
    )
    max_bypasses: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=8, title="Bypasses of a head", description="Then blocks are held for it."
    )
    swap: bool = Field(default=True, title="Copy parked blocks to host memory when cheaper")


class Policy(_Section):
    """Everything operators tune for one pool."""

    classes: tuple[ClassPolicy, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    default_class: ClassId | None = Field(
        default=None, title="Default class", description="Empty: the least urgent."
    )
    retired: dict[ClassId, ClassId] = Field(
        default_factory=dict, title="Retired classes", description="And the class that serves what is left."
    )
    batch_limit: BatchLimit = BatchLimit()
    step: Step = Step()
    fairness: Fairness = Fairness()
    starvation: Starvation = Starvation()
    admission: Admission = Admission()
    memory: Memory = Memory()

    def find(self, class_id: str) -> ClassPolicy:
        """The class, following `retired`; raises KeyError for an id that was never one."""
        for _ in range(MAX_CLASSES + len(self.retired)):
            for candidate in self.classes:
                if candidate.id == class_id:
                    return candidate
            class_id = self.retired[class_id]
        raise KeyError(class_id)

    def least_urgent(self) -> ClassPolicy:
        """The class with the highest rank number; the last of the document among equals."""
        return max(enumerate(self.classes), key=lambda pair: (pair[1].rank, pair[0]))[1]


class Mistake(BaseModel):
    """One thing wrong with a document: `path` as in `classes.1.max_wait_s`, and what would be right."""

    path: str
    message: str


class _Relation(Mistake):
    """A mistake between fields: `involves` names all of them, as paths."""

    involves: tuple[str, ...] = Field(exclude=True)


PLACEHOLDERS: Final[dict[int | str, Any]] = {
    "id": "",
    "rank": 0,
    "weight": 1.0,
    "ttft_s": 1.0,
    "tpot_s": 1.0,
    "slo": {"ttft_s": 1.0, "tpot_s": 1.0},
}
"""What stands in for a required field that is wrong, while the others are compared."""


class InvalidPolicy(ValueError):
    """A document that is not a policy; `mistakes` has every reason."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__("; ".join(f"{mistake.path}: {mistake.message}" for mistake in mistakes))
        self.mistakes = mistakes


def check_policy(document: Mapping[str, Any]) -> Policy:
    """The policy of a JSON document; raises `InvalidPolicy` with all mistakes, fields and relations alike."""
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        raise InvalidPolicy((*_field_mistakes(error), *_mistakes_beside(document, error))) from error
    if mistakes := tuple(_relation_mistakes(policy)):
        raise InvalidPolicy(mistakes)
    return policy


def default_policy() -> Policy:
    """The scenario's three classes: 70/20/10, first token in 100, 300 and 500 ms.

    Low is refused when it would miss its objective: what it would take, beyond that, others could use. A prompt may
    fill a step: the objectives bound it anyway, and a smaller chunk made short prompts wait behind long ones.
    """
    return Policy(
        classes=(
            ClassPolicy(
                id="high",
                rank=0,
                weight=70,
                slo=Slo(ttft_s=0.1, tpot_s=0.025),
                preemption=Preemption(preemptible=False),
            ),
            ClassPolicy(id="medium", rank=1, weight=20, slo=Slo(ttft_s=0.3, tpot_s=0.05)),
            ClassPolicy(id="low", rank=2, weight=10, slo=Slo(ttft_s=0.5, tpot_s=0.1), admit_on="ttft"),
        ),
        step=Step(max_chunk_tokens=2048),
    )


def policy_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that the form is built from."""
    return Policy.model_json_schema()


def _field_mistakes(error: ValidationError) -> Iterator[Mistake]:
    for problem in error.errors(include_url=False, include_context=False):
        path = ".".join(str(part) for part in problem["loc"])
        yield Mistake(path=path, message=_in_words(problem["type"], problem["msg"], problem.get("input")))


def _mistakes_beside(document: Mapping[str, Any], error: ValidationError) -> tuple[Mistake, ...]:
    """What is wrong between the fields that are right: the others are replaced, and what involves them is not told."""
    places = [problem["loc"] for problem in error.errors(include_url=False, include_input=False)]
    mended = copy.deepcopy(dict(document))
    for place in places:
        _mend(mended, place)
    try:
        policy = Policy.model_validate(mended)
    except ValidationError:
        return ()
    unknown = tuple(".".join(str(part) for part in place) for place in places)
    found = tuple(_relation_mistakes(policy))
    return tuple(one for one in found if not any(_covers(bad, path) for bad in unknown for path in one.involves))


def _mend(document: Any, place: tuple[int | str, ...]) -> None:
    """Put something valid where a field is wrong: its default, or a placeholder where it has none."""
    *parents, last = place
    owner = document
    try:
        for part in parents:
            owner = owner[part]
    except (KeyError, IndexError, TypeError):
        return
    if not isinstance(owner, dict):
        return
    owner.pop(last, None)
    if last in PLACEHOLDERS:
        number = next((part for part in parents if isinstance(part, int)), 0)
        owner[last] = f"unknown-{number}" if last == "id" else PLACEHOLDERS[last]


def _covers(place: str, path: str) -> bool:
    return path == place or path.startswith(f"{place}.") or place.startswith(f"{path}.")


def _in_words(kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is not a field of the policy"
    return f"{message[0].lower()}{message[1:]}; got {value!r}"


def _relation_mistakes(policy: Policy) -> Iterator[_Relation]:
    yield from _class_list_mistakes(policy)
    for index, one in enumerate(policy.classes):
        yield from _class_mistakes(f"classes.{index}", one)
    limit = policy.batch_limit
    if limit.max_slots is not None and limit.max_slots < limit.min_slots:
        yield _Relation(
            path="batch_limit.max_slots",
            involves=("batch_limit.max_slots", "batch_limit.min_slots"),
            message=f"{limit.max_slots} is below the least, {limit.min_slots}. Choose {limit.min_slots} or more.",
        )
    if policy.step.max_chunk_tokens > policy.step.max_num_batched_tokens:
        yield _Relation(
            path="step.max_chunk_tokens",
            involves=("step.max_chunk_tokens", "step.max_num_batched_tokens"),
            message=f"a chunk of {policy.step.max_chunk_tokens} tokens never fits the step's budget of "
            f"{policy.step.max_num_batched_tokens}. Choose at most that.",
        )


def _class_list_mistakes(policy: Policy) -> Iterator[_Relation]:
    seen_ids: dict[str, int] = {}
    seen_ranks: dict[int, int] = {}
    for index, one in enumerate(policy.classes):
        if one.id in seen_ids:
            path = f"classes.{index}.id"
            involves = (path, f"classes.{seen_ids[one.id]}.id")
            message = f"{one.id} is the name of another class too"
            yield _Relation(path=path, involves=involves, message=message)
        elif one.rank in seen_ranks:
            path, other = f"classes.{index}.rank", seen_ranks[one.rank]
            involves = (path, f"classes.{other}.rank")
            message = f"{one.rank} is the rank of {policy.classes[other].id} too. Give each class its own."
            yield _Relation(path=path, involves=involves, message=message)
        seen_ids.setdefault(one.id, index)
        seen_ranks.setdefault(one.rank, index)
    ids = tuple(f"classes.{index}.id" for index in range(len(policy.classes)))
    if policy.default_class is not None and policy.default_class not in seen_ids:
        message = f"{policy.default_class} is not a class of this policy"
        yield _Relation(path="default_class", involves=("default_class", *ids), message=message)
    for old, fallback in policy.retired.items():
        if message := _retired_mistake(policy, set(seen_ids), old, fallback):
            yield _Relation(path=f"retired.{old}", involves=("retired", *ids), message=message)


def _retired_mistake(policy: Policy, active: set[str], old: str, fallback: str) -> str:
    if old in active:
        return f"{old} is still a class; class ids are permanent"
    try:
        policy.find(fallback)
    except KeyError:
        return f"{fallback} does not lead to a class of this policy"
    return ""


def _class_mistakes(path: str, one: ClassPolicy) -> Iterator[_Relation]:
    if one.max_wait_s < one.slo.ttft_s:
        yield _Relation(
            path=f"{path}.max_wait_s",
            involves=(f"{path}.max_wait_s", f"{path}.slo.ttft_s"),
            message=f"{one.id}: {one.max_wait_s:g} s is shorter than its TTFT objective of {one.slo.ttft_s:g} s, "
            f"so requests would count as starving before they are late. Choose {one.slo.ttft_s:g} s or more.",
        )
    if (one.slo.e2e_s is None) != (one.slo.e2e_target is None):
        missing = "e2e_s" if one.slo.e2e_s is None else "e2e_target"
        yield _Relation(
            path=f"{path}.slo.{missing}",
            involves=(f"{path}.slo.e2e_s", f"{path}.slo.e2e_target"),
            message="an end-to-end promise has an objective and a share; give both or neither",
        )
