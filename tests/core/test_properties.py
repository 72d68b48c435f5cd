"""What holds of every workload, with any number of classes: room is used, budgets and limits are kept, all is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_worker.core.batch_limit import BatchLimit
from scheduler_worker.core.plan import Event, EventKind, Reason, StepPlan
from scheduler_worker.core.policy import BatchLimit as LimitRules
from scheduler_worker.core.policy import ClassPolicy, Policy, Preemption, Slo, Step
from tests.core.worlds import World, a_capacity

MIN_CHUNK = 32


@dataclass(frozen=True)
class Arrival:
    """One request of a generated workload."""

    gap_s: float
    class_number: int
    tenant: str
    prompt: int
    max_tokens: int
    length: int


@dataclass(frozen=True)
class Load:
    """Classes, and what is asked of them."""

    policy: Policy
    arrivals: list[Arrival]
    depth: int = 1


@dataclass
class Served:
    """What came of a load: the world, and what was seen after each step."""

    world: World
    idle_slots: list[int] = field(default_factory=list)
    missing_rows: list[int] = field(default_factory=list)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        gap_s=st.sampled_from((0.0, 0.001, 0.005, 0.02)),
        class_number=st.integers(0, 5),
        tenant=st.sampled_from("ab"),
        prompt=st.sampled_from((1, 16, 40, 150, 300)),
        max_tokens=st.sampled_from((1, 4, 40)),
        length=st.sampled_from((1, 5, 40)),
    ),
    min_size=5,
    max_size=30,
)
PREEMPTIONS = st.builds(
    Preemption,
    preemptible=st.booleans(),
    max_generated_tokens=st.sampled_from((0, 3, 50)),
    max_preemptions=st.sampled_from((0, 1)),
    min_residency_s=st.sampled_from((0.0, 0.01)),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """One to six classes of any weight; the first has tight objectives, so that its requests press."""
    classes = tuple(
        ClassPolicy(
            id=f"class-{rank}",
            rank=rank,
            weight=draw(st.sampled_from((0.5, 1.0, 30.0))),
            slo=Slo(ttft_s=draw(st.sampled_from((0.01, 0.05))), tpot_s=draw(st.sampled_from((0.004, 0.05)))),
            max_wait_s=draw(st.sampled_from((0.5, 30.0))),
            preemption=draw(PREEMPTIONS),
        )
        for rank in range(draw(st.integers(1, 6)))
    )
    budget = draw(st.sampled_from((24, 2_048)))
    return Policy(classes=classes, step=Step(max_num_batched_tokens=budget, max_chunk_tokens=budget))


LOADS = st.builds(Load, policy=policies(), arrivals=ARRIVALS, depth=st.sampled_from((1, 2)))


def serve(load: Load, num_slots: int = 3, num_blocks: int = 256) -> Served:
    """Let everybody arrive at its time and run until all have ended."""
    capacity = a_capacity(
        num_slots=num_slots, num_blocks=num_blocks, max_in_flight_steps=load.depth, num_swap_blocks=64
    )
    served = Served(World(policy=load.policy, capacity=capacity, checks=False))
    world, arrives_at = served.world, 0.0
    for number, one in enumerate(load.arrivals):
        arrives_at += one.gap_s
        while world.now < arrives_at and world.scheduler.state.sequences:
            _step(served)
        world.now = max(world.now, arrives_at)
        class_id = f"class-{one.class_number % len(load.policy.classes)}"
        world.add(
            f"r{number}", class_id, prompt=one.prompt, max_tokens=one.max_tokens, length=one.length, tenant=one.tenant
        )
    for _ in range(10_000):
        if not world.scheduler.state.sequences and not world.launched:
            return served
        _step(served)
    raise AssertionError(f"still waiting: {list(world.scheduler.state.sequences)}")


def _step(served: Served) -> None:
    """One step; after its booking, how many slots idle while somebody waits, and which rows it left out."""
    world, state = served.world, served.world.scheduler.state
    rows = len(state.lockstep)
    plan = world.launch()
    if plan is not None:
        served.missing_rows.append(rows - plan.num_lockstep)
        waits = len(state.waiting) + len(state.ready)
        running = state.num_running + len(state.closing) + len(state.vacating) + len(state.limbo)
        served.idle_slots.append(min(waits, state.capacity.num_slots - running))
    if world.launched and (plan is None or len(world.launched) >= world.capacity.max_in_flight_steps):
        world.land()
    elif plan is None:
        world.now += 0.01


@settings(max_examples=60, deadline=None)
@given(LOADS)
def test_with_any_number_of_classes_everybody_gets_the_whole_answer(load: Load) -> None:
    world = serve(load, num_blocks=40).world
    wanted = {f"r{number}": min(one.max_tokens, one.length) for number, one in enumerate(load.arrivals)}
    assert {name: ended.num_generated_tokens for name, ended in world.finished.items()} == wanted


@settings(max_examples=60, deadline=None)
@given(policies(), ARRIVALS)
def test_no_slot_idles_while_somebody_waits(policy: Policy, arrivals: list[Arrival]) -> None:
    """Given blocks and tokens for all; and where no objective makes steps short."""
    classes = tuple(one.model_copy(update={"slo": Slo(ttft_s=1.0, tpot_s=1.0)}) for one in policy.classes)
    ample = policy.model_copy(update={"classes": classes, "step": Step()})
    assert set(serve(Load(ample, arrivals)).idle_slots) <= {0}


@settings(max_examples=60, deadline=None)
@given(LOADS)
def test_no_step_has_more_tokens_than_its_budget(load: Load) -> None:
    plans = serve(load).world.plans
    assert max(sum(one.num_tokens for one in plan.chunks) for plan in plans) <= load.policy.step.max_num_batched_tokens


@settings(max_examples=60, deadline=None)
@given(policies(), ARRIVALS)
def test_no_decode_misses_a_step_for_the_sake_of_a_prompt(policy: Policy, arrivals: list[Arrival]) -> None:
    """Given blocks, and where nobody has to yield."""
    firm = tuple(one.model_copy(update={"preemption": Preemption(preemptible=False)}) for one in policy.classes)
    served = serve(Load(policy.model_copy(update={"classes": firm}), arrivals))
    assert set(served.missing_rows) <= {0}


@settings(max_examples=60, deadline=None)
@given(LOADS)
def test_a_step_with_decodes_keeps_their_tightest_objective_or_has_the_smallest_chunk(load: Load) -> None:
    plans = [plan for plan in serve(load).world.plans if plan.num_lockstep and plan.shape.num_prefill_tokens]
    class_of = {f"r{number}": one.class_number % len(load.policy.classes) for number, one in enumerate(load.arrivals)}
    too_long = [plan for plan in plans if plan.predicted_s > _tightest_s(load.policy, class_of, plan)]
    assert [plan.step for plan in too_long if plan.shape.num_prefill_tokens > MIN_CHUNK] == []


def _tightest_s(policy: Policy, class_of: dict[str, int], plan: StepPlan) -> float:
    return min(policy.classes[class_of[one.seq_id]].slo.tpot_s for one in plan.chunks[: plan.num_lockstep])


def yields_of(world: World) -> list[Event]:
    return [one for one in world.events_of(EventKind.PREEMPTED) if one.reason is Reason.PREEMPTED_BY_PRIORITY]


@settings(max_examples=100, deadline=None)
@given(LOADS)
def test_nobody_yields_more_often_than_its_class_lets_it(load: Load) -> None:
    yields = [one.seq_id for one in yields_of(serve(load, num_slots=1).world)]
    most = {one.id: one.preemption.max_preemptions * one.preemption.preemptible for one in load.policy.classes}
    allowed = {f"r{number}": most[_class_id(load, one)] for number, one in enumerate(load.arrivals)}
    assert [name for name in set(yields) if yields.count(name) > allowed[name]] == []


@settings(max_examples=100, deadline=None)
@given(LOADS)
def test_nobody_yields_to_one_that_is_no_more_urgent_or_before_its_time(load: Load) -> None:
    world = serve(load, num_slots=1).world
    rank_of = {f"r{number}": one.class_number % len(load.policy.classes) for number, one in enumerate(load.arrivals)}
    begun_at: dict[str, float] = {}
    for event in world.events:
        if event.kind in (EventKind.SCHEDULED, EventKind.RESUMED):
            begun_at[event.seq_id] = event.at
        if event in yields_of(world):
            rules = load.policy.classes[rank_of[event.seq_id]].preemption
            is_time = event.at - begun_at[event.seq_id] >= rules.min_residency_s
            assert (rank_of[str(event.numbers["by"])] < rank_of[event.seq_id], is_time) == (True, True)


def _class_id(load: Load, one: Arrival) -> str:
    return f"class-{one.class_number % len(load.policy.classes)}"


@settings(max_examples=40, deadline=None)
@given(LOADS)
def test_the_same_workload_gives_the_same_events_and_plans(load: Load) -> None:
    first, second = serve(load, num_blocks=40).world, serve(load, num_blocks=40).world
    assert repr((first.events, first.plans)) == repr((second.events, second.plans))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from((0.01, 0.02, 0.03, 0.06)), min_size=40, max_size=400),
    min_slots=st.integers(1, 20),
    is_binding=st.booleans(),
)
def test_the_batch_limit_moves_by_its_steps_within_its_range(
    steps: list[float], min_slots: int, is_binding: bool
) -> None:
    rules = LimitRules(min_slots=min_slots, max_slots=24, itl_window_steps=2, num_samples=3)
    limit, at = BatchLimit(rules, 32), 0.0
    changes = []
    for seconds in steps:
        at += seconds
        changes.append(limit.step_applied(at, 1_000, 0.03, is_binding))
        assert min_slots <= limit.limit <= 24
    moves = [one.after - one.before for one in changes if one is not None]
    assert all(-rules.shrink_by <= move <= rules.grow_by for move in moves)
