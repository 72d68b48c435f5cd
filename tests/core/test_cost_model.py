"""Step times are learned from steps, outliers and all."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_worker.core.cost_model import CostModel
from scheduler_worker.core.plan import StepShape

TRUE = {
    "base_s": 0.0015,
    "decode_row_s": 9e-6,
    "prefill_token_s": 6.5e-6,
    "kv_token_s": 7.8e-9,
    "attention_pair_s": 2e-10,
}


def truth(shape: StepShape, figures: dict[str, float] = TRUE) -> float:
    return (
        figures["base_s"]
        + figures["decode_row_s"] * shape.num_decode_rows
        + figures["prefill_token_s"] * shape.num_prefill_tokens
        + figures["kv_token_s"] * shape.num_kv_tokens
        + figures["attention_pair_s"] * shape.num_attention_pairs
    )


def a_shape(random: Random) -> StepShape:
    rows = random.randint(0, 256)
    prefill = random.choice((0, 0, 0, random.randint(1, 2048)))
    context = random.randint(50, 2000)
    pairs = prefill * (prefill + 1) // 2
    return StepShape(rows, prefill, rows * context + prefill, pairs)


def taught(num_steps: int, figures: dict[str, float] = TRUE, noise: float = 0.0, outliers: float = 0.0) -> CostModel:
    random = Random(7)
    model = CostModel()
    for _ in range(num_steps):
        shape = a_shape(random)
        seconds = truth(shape, figures) * max(0.2, random.gauss(1.0, noise))
        model.observe(shape, seconds * (20.0 if random.random() < outliers else 1.0))
    return model


def mean_error(model: CostModel, figures: dict[str, float] = TRUE) -> float:
    random = Random(8)
    shapes = [a_shape(random) for _ in range(500)]
    return sum(abs(model.predict(one) / truth(one, figures) - 1.0) for one in shapes) / len(shapes)


DAY = [(rows, prompt) for rows in (30, 36, 40) for prompt in (0, 0, 0, 100, 512)]


def test_it_predicts_its_prior_before_it_has_seen_a_step() -> None:
    model = CostModel(TRUE)
    shape = StepShape(10, 100, 5000, 5050)
    assert model.predict(shape) == pytest.approx(truth(shape))


def test_a_few_steps_teach_it() -> None:
    assert mean_error(taught(50)) < 0.05


def test_noise_of_a_tenth_leaves_the_error_small() -> None:
    assert mean_error(taught(2000, noise=0.1)) < 0.05


def test_outliers_of_twenty_times_leave_the_error_below_a_tenth() -> None:
    assert mean_error(taught(3000, noise=0.05, outliers=0.01)) < 0.10


def test_it_follows_a_device_that_changes() -> None:
    model = taught(1000)
    slower = {name: 1.5 * value for name, value in TRUE.items()}
    random = Random(9)
    for _ in range(2000):
        shape = a_shape(random)
        model.observe(shape, truth(shape, slower))
    assert mean_error(model, slower) < 0.05


def test_slowness_rises_when_steps_take_longer_than_they_used_to() -> None:
    model = taught(1000)
    assert model.slowness == pytest.approx(1.0, abs=0.02)
    random = Random(9)
    for _ in range(100):
        shape = a_shape(random)
        model.observe(shape, 1.3 * truth(shape))
    assert model.slowness > 1.2


def test_figures_survive_the_wire() -> None:
    model = taught(500)
    again = CostModel.from_dict(model.to_dict())
    shape = StepShape(10, 100, 5000, 5050)
    assert again.predict(shape) == pytest.approx(model.predict(shape))
    assert again.to_dict() == pytest.approx(model.to_dict(), rel=1e-9)


def test_figures_on_the_wire_are_floats() -> None:
    assert all(type(value) is float for value in CostModel().to_dict().values())


def test_a_step_without_duration_teaches_nothing() -> None:
    model = CostModel(TRUE)
    model.observe(StepShape(1), 0.0)
    assert model.num_observed == 0


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4096), st.floats(1e-4, 5.0)), max_size=60))
def test_more_work_never_takes_less_time(steps: list[tuple[int, int, float]]) -> None:
    model = CostModel()
    for rows, prefill, seconds in steps:
        model.observe(StepShape(rows, prefill, rows * 100, prefill * prefill), seconds)
    small, large = StepShape(4, 10, 400, 100), StepShape(8, 20, 900, 400)
    assert 0.0 < model.predict(small) <= model.predict(large)


def test_only_decode_steps_leave_the_price_of_a_prompt_at_its_prior() -> None:
    model = CostModel(TRUE)
    random = Random(3)
    for _ in range(3000):
        rows = random.randint(1, 64)
        shape = StepShape(rows, 0, rows * 500)
        model.observe(shape, truth(shape))
    assert model.prefill_s(1000) == pytest.approx(CostModel(TRUE).prefill_s(1000), rel=0.1)


def test_a_prompt_costs_its_tokens_its_context_and_a_step() -> None:
    model = CostModel(TRUE)
    pairs = 100 * 50 + 100 * 101 // 2
    assert model.prefill_s(100, 50) == pytest.approx(
        TRUE["base_s"] + 100 * TRUE["prefill_token_s"] + 50 * TRUE["kv_token_s"] + pairs * TRUE["attention_pair_s"]
    )
    assert model.prefill_token_s(1000) == pytest.approx(TRUE["prefill_token_s"] + 1000 * TRUE["attention_pair_s"])


def test_a_hundred_thousand_steps_that_repeat_each_other_do_not_wear_the_model_out() -> None:
    model = CostModel()
    shapes = [StepShape(rows, prompt, rows * 1_000 + prompt, prompt * prompt // 2) for rows, prompt in DAY]
    for step in range(100_000):
        shape = shapes[step % len(shapes)]
        model.observe(shape, 0.0015 + 9e-6 * shape.num_decode_rows + 6.5e-6 * shape.num_prefill_tokens)
    shape = StepShape(40, 512, 41_000, 512 * 512 // 2)
    assert model.predict(shape) == pytest.approx(0.0015 + 9e-6 * 40 + 6.5e-6 * 512, rel=0.02)
