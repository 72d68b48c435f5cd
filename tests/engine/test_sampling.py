"""Sampling against transformers' own logits processors, against plain formulas, and against its
distribution."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation import logits_process as reference_processors

from scheduler_worker.engine.randomness import uniform
from scheduler_worker.engine.sampling import (
    Sampler,
    SampleRows,
    allowed,
    pick_on_device,
    pick_on_host,
    weight_floor,
    why_invalid,
)
from scheduler_worker.engine.sequences import EngineSequence
from scheduler_worker.protocol.messages import SamplingParams
from tests.engine.models import make_executor, make_prompt
from tests.engine.planner import HandPlanner

VOCAB = 1000
CHI_SQUARE_LIMIT = 1.6
"""Chi-square over its degrees of freedom: with 50 or more of them it passes this once in a thousand runs."""


def random_logits(num_rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sampler_for(
    *params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None
) -> Sampler:
    sampler = Sampler(len(params), VOCAB, torch.device("cpu"))
    for slot, sampling in enumerate(params):
        tokens = array("I", (prompt or [1]) + (output or []))
        stops = frozenset(sampling.stop_token_ids)
        sampler.occupy(
            slot, EngineSequence("s", tokens, len(prompt or [1]), sampling, sampling.seed or 0, stops)
        )
    return sampler


def keep_likeliest(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """The scores with -inf for what our filters drop."""
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return scores.masked_fill(weights < weight_floor(weights, top_k, top_p, min_p)[:, None], -torch.inf)


def rows(num_rows: int, index: int = 0) -> SampleRows:
    indices = np.full(num_rows, index, dtype=np.int64)
    return SampleRows(np.arange(num_rows), indices, np.ones(num_rows, dtype=bool))


@pytest.mark.parametrize("top_k", [1, 5, 300, VOCAB])
def test_top_k_keeps_what_transformers_keeps(top_k: int) -> None:
    scores = random_logits(4)
    ours = keep_likeliest(scores, torch.full((4,), top_k), torch.ones(4), torch.zeros(4))

    assert torch.equal(ours, reference_processors.TopKLogitsWarper(top_k)(None, scores))


@pytest.mark.parametrize("flatness", [1.0, 0.02])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps_also_when_it_takes_most_of_the_vocabulary(
    top_p: float, flatness: float
) -> None:
    scores = random_logits(4) * flatness
    ours = keep_likeliest(scores, torch.full((4,), VOCAB), torch.full((4,), top_p), torch.zeros(4))

    assert torch.equal(ours, reference_processors.TopPLogitsWarper(top_p)(None, scores))


def test_min_p_keeps_what_transformers_keeps() -> None:
    scores = random_logits(4)
    ours = keep_likeliest(scores, torch.full((4,), VOCAB), torch.ones(4), torch.full((4,), 0.05))

    assert torch.equal(ours, reference_processors.MinPLogitsWarper(0.05)(None, scores))


def test_each_row_is_filtered_by_its_own_parameters() -> None:
    scores = random_logits(3)
    ours = keep_likeliest(
        scores, torch.tensor([7, VOCAB, 40]), torch.tensor([1.0, 0.8, 0.7]), torch.tensor([0.0, 0.0, 0.02])
    )
    warpers = reference_processors
    expected = [
        warpers.TopKLogitsWarper(7)(None, scores[0:1]),
        warpers.TopPLogitsWarper(0.8)(None, scores[1:2]),
        warpers.MinPLogitsWarper(0.02)(
            None, warpers.TopPLogitsWarper(0.7)(None, warpers.TopKLogitsWarper(40)(None, scores[2:3]))
        ),
    ]

    assert torch.equal(ours, torch.cat(expected))


@pytest.mark.parametrize(
    "filters", [(40, 1.0, 0.0), (VOCAB, 0.8, 0.0), (VOCAB, 1.0, 0.02), (VOCAB, 0.95, 0.02)], ids=str
)
def test_accepting_a_token_agrees_with_the_floor(filters: tuple[int, float, float]) -> None:
    weights = random_logits(1).softmax(-1).expand(VOCAB, -1)
    weights = weights / weights.max()
    parameters = [torch.full((VOCAB,), value) for value in filters]
    passes = allowed(weights, torch.arange(VOCAB), *parameters)

    assert torch.equal(passes, weights[0] >= weight_floor(weights, *parameters)[0])


def processed(
    sampling: SamplingParams, logits: torch.Tensor, prompt: list[int], output: list[int]
) -> list[int]:
    """Greedy choices as the processed logits' maximum walks down: the order of the likeliest tokens."""
    order: list[int] = []
    logits = logits.clone()
    for _ in range(20):
        sampler = sampler_for(sampling, prompt=prompt, output=output)
        token = int(sampler.sample(logits.clone(), rows(1, len(output))).ids[0])
        order.append(token)
        logits[0, token] = -1e9
    return order


def expected_order(scores: torch.Tensor) -> list[int]:
    return scores[0].argsort(descending=True)[:20].tolist()


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = random_logits(1)
    likeliest = expected_order(logits)
    prompt, output = likeliest[:6], likeliest[4:9]
    ids = torch.tensor([prompt + output])
    scores = reference_processors.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone())

    ours = processed(SamplingParams(temperature=0.0, repetition_penalty=1.7), logits, prompt, output)
    assert ours == expected_order(scores)


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    logits = random_logits(1)
    likeliest = expected_order(logits)
    prompt, output = likeliest[:6], likeliest[4:9] * 2
    scores = logits.clone()
    for token in set(output):
        scores[0, token] -= 0.7 + 0.4 * output.count(token)

    params = SamplingParams(temperature=0.0, presence_penalty=0.7, frequency_penalty=0.4)
    assert processed(params, logits, prompt, output) == expected_order(scores)


def test_logit_bias_is_added() -> None:
    logits = random_logits(1)
    scores = logits.clone()
    scores[0, 17] += 50
    scores[0, int(logits.argmax())] -= 50

    params = SamplingParams(temperature=0.0, logit_bias={17: 50.0, int(logits.argmax()): -50.0})
    assert processed(params, logits, [1], []) == expected_order(scores)


@pytest.mark.parametrize(("index", "allowed"), [(0, False), (4, False), (5, True)])
def test_stop_tokens_are_forbidden_before_min_tokens(index: int, allowed: bool) -> None:
    logits = random_logits(1)
    likeliest = int(logits.argmax())
    sampler = sampler_for(SamplingParams(temperature=0.0, min_tokens=5, stop_token_ids=(likeliest,)))

    assert (int(sampler.sample(logits, rows(1, index)).ids[0]) == likeliest) is allowed


def test_logprobs_are_those_of_the_unprocessed_model() -> None:
    logits = random_logits(2)
    sampler = sampler_for(
        SamplingParams(temperature=0.5, seed=1, logprobs=3, logit_bias={5: 30.0}), SamplingParams()
    )
    sampled = sampler.sample(logits.clone(), rows(2))
    expected = logits[0].log_softmax(-1)

    assert sampled.top_logprobs is not None
    assert sampled.chosen_logprobs is not None
    assert torch.allclose(sampled.top_logprobs[0], expected.topk(3).values)
    assert torch.allclose(sampled.chosen_logprobs[0], expected[sampled.ids[0]])


def chi_square(ids: np.ndarray, probabilities: np.ndarray) -> float:
    """Chi-square over degrees of freedom, cells of less than 5 expected draws pooled."""
    expected = probabilities * len(ids)
    counts = np.bincount(ids, minlength=len(expected)).astype(float)
    large = expected >= 5
    expected = np.append(expected[large], expected[~large].sum())
    counts = np.append(counts[large], counts[~large].sum())
    keep = expected > 0
    return float((((counts - expected) ** 2)[keep] / expected[keep]).sum() / (keep.sum() - 1))


Warp = Callable[[torch.Tensor], torch.Tensor]
DISTRIBUTIONS: dict[str, tuple[SamplingParams, Warp]] = {
    "temperature": (SamplingParams(temperature=1.3, seed=3), lambda s: s / 1.3),
    "top-k": (
        SamplingParams(top_k=80, seed=4),
        lambda s: reference_processors.TopKLogitsWarper(80)(None, s),
    ),
    "top-p": (
        SamplingParams(temperature=1.5, top_p=0.9, seed=5),
        lambda s: reference_processors.TopPLogitsWarper(0.9)(None, s / 1.5),
    ),
    "min-p": (
        SamplingParams(min_p=0.01, seed=6),
        lambda s: reference_processors.MinPLogitsWarper(0.01)(None, s),
    ),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_draws_follow_the_distribution_of_transformers(kind: str) -> None:
    sampling, warp = DISTRIBUTIONS[kind]
    logits = random_logits(1)
    sampler = sampler_for(sampling)
    num_draws = 40_000
    many = SampleRows(
        np.zeros(num_draws, dtype=np.int64), np.arange(num_draws), np.ones(num_draws, dtype=bool)
    )
    ids = torch.cat(
        [
            sampler.sample(
                logits.expand(1000, -1),
                SampleRows(many.slots[i : i + 1000], many.indices[i : i + 1000], many.samples[i : i + 1000]),
            ).ids
            for i in range(0, num_draws, 1000)
        ]
    )

    assert chi_square(ids.numpy(), warp(logits)[0].softmax(-1).numpy()) < CHI_SQUARE_LIMIT


def test_the_chi_square_test_would_notice_a_wrong_temperature() -> None:
    logits = random_logits(1)
    draws = uniform(np.full(40_000, 9, dtype=np.uint64), np.arange(40_000))
    weights = np.broadcast_to((logits / 1.1).exp().numpy(), (1000, VOCAB))
    ids = np.concatenate([pick_on_host(weights, part) for part in np.split(draws, 40)])

    assert chi_square(ids, logits[0].softmax(-1).numpy()) > 2 * CHI_SQUARE_LIMIT


ENDS_OF_THE_INTERVAL = np.array([0.0, 0.5, math.nextafter(1.0, 0.0)])


def test_a_token_of_no_weight_is_never_picked_even_at_the_ends_of_the_interval() -> None:
    weights = np.zeros((3, 700), dtype=np.float32)
    weights[:, [300, 301, 650]] = 1.0

    assert pick_on_host(weights, ENDS_OF_THE_INTERVAL).tolist() == [300, 301, 650]


def test_the_device_picks_what_the_host_picks() -> None:
    weights = random_logits(500).exp()
    draws = uniform(np.arange(500, dtype=np.uint64), np.arange(500))

    on_host = pick_on_host(weights.numpy(), draws)
    assert np.array_equal(pick_on_device(weights, torch.from_numpy(draws)).numpy(), on_host)


def test_numbers_are_uniform_and_independent_of_the_order_of_drawing() -> None:
    seeds, indices = np.full(20_000, 12345, dtype=np.uint64), np.arange(20_000)
    numbers = uniform(seeds, indices)
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]

    assert ((counts - 200.0) ** 2 / 200.0).sum() / 99 < CHI_SQUARE_LIMIT
    assert np.array_equal(uniform(seeds[::-1], indices[::-1])[::-1], numbers)


def test_neighbouring_seeds_give_unrelated_numbers() -> None:
    indices = np.zeros(5000, dtype=np.int64)
    numbers = uniform(np.arange(5000, dtype=np.uint64), indices)

    assert abs(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1])) < 0.05


SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=42, ignore_eos=True, repetition_penalty=1.1)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_changing_batch(llama: PreTrainedModel) -> None:
    alone = HandPlanner(make_executor(llama))
    alone.add("a", make_prompt(17), 20, SAMPLED)
    expected = alone.run()["a"]
    crowded = HandPlanner(make_executor(llama), chunk_size=5)
    for seed in range(4):
        crowded.add(f"other{seed}", make_prompt(9 + seed, seed), 6 + seed, SamplingParams(ignore_eos=True))
    crowded.step()
    crowded.add("a", make_prompt(17), 20, SAMPLED)

    assert crowded.run()["a"] == expected


def test_a_seed_gives_the_same_tokens_when_another_process_goes_on(llama: PreTrainedModel) -> None:
    whole = HandPlanner(make_executor(llama))
    whole.add("a", make_prompt(17), 20, SAMPLED)
    expected = whole.run()["a"]
    later = HandPlanner(make_executor(llama), chunk_size=8)
    later.add("a", make_prompt(17), 20, SAMPLED, generated=expected[:9])

    assert later.run()["a"] == expected


def test_without_a_seed_two_runs_differ(llama: PreTrainedModel) -> None:
    planner = HandPlanner(make_executor(llama))
    for seq_id in "ab":
        planner.add(seq_id, make_prompt(17), 20, SamplingParams(temperature=2.0, ignore_eos=True))
    output = planner.run()

    assert output["a"] != output["b"]


def test_greedy_rows_are_unmoved_by_sampled_neighbours(llama: PreTrainedModel) -> None:
    alone = HandPlanner(make_executor(llama))
    alone.add("greedy", make_prompt(11), 12)
    expected = alone.run()["greedy"]
    mixed = HandPlanner(make_executor(llama))
    mixed.add("sampled", make_prompt(13), 12, SAMPLED)
    mixed.add("greedy", make_prompt(11), 12)

    assert mixed.run()["greedy"] == expected


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=-1.0),
        SamplingParams(temperature=math.nan),
        SamplingParams(top_p=0.0),
        SamplingParams(top_p=1.1),
        SamplingParams(top_k=-1),
        SamplingParams(min_p=2.0),
        SamplingParams(repetition_penalty=0.0),
        SamplingParams(presence_penalty=math.inf),
        SamplingParams(frequency_penalty=math.nan),
        SamplingParams(logit_bias={VOCAB: 1.0}),
        SamplingParams(logit_bias={1: math.nan}),
        SamplingParams(stop_token_ids=(-1,)),
        SamplingParams(logprobs=1000),
        SamplingParams(min_tokens=-1),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_its_name(sampling: SamplingParams) -> None:
    default = SamplingParams()
    wrong = next(
        name for name in sampling.__struct_fields__ if getattr(sampling, name) != getattr(default, name)
    )

    assert wrong in (why_invalid(sampling, VOCAB) or "")
