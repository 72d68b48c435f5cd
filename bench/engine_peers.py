"""The same model by transformers' own means, on requests of the same workload: `bench.engine --parts transformers`.

`generate()` in static batches runs each batch until its longest answer is done; continuous batching takes requests in
as others end. Only so many requests as there are slots are given, since both take long.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

Asked = Sequence[tuple[list[int], int]]
"""Prompt tokens and the number of tokens to generate, for each request."""


def generate_tokens_per_s(model: PreTrainedModel, requests: Asked, padding: int, warm: bool = True) -> float:
    """Useful tokens a second of one static batch, padded on the left; with `warm` a few tokens before it."""
    longest, most = max(len(ids) for ids, _ in requests), max(count for _, count in requests)
    ids = torch.full((len(requests), longest), padding, device=model.device)
    mask = torch.zeros_like(ids)
    for row, (prompt, _) in enumerate(requests):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
        mask[row, longest - len(prompt) :] = 1
    options: Any = {"do_sample": False, "pad_token_id": padding}
    with torch.inference_mode():
        if warm:
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, **options)
            _wait(model)
        started = time.perf_counter()
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, **options
        )
        _wait(model)
    return sum(count for _, count in requests) / (time.perf_counter() - started)


def continuous_tokens_per_s(
    model: PreTrainedModel, requests: Asked, num_slots: int, warm: bool = True
) -> float:
    """Useful tokens a second of transformers' continuous batching; with `warm` two requests before it."""
    given = GenerationConfig(do_sample=False, max_new_tokens=512, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation_config=given,
        continuous_batching_config=ContinuousBatchingConfig(max_requests_per_batch=num_slots),
    )
    manager.start()
    try:
        if warm:
            _complete(manager, requests[:2])
        started = time.perf_counter()
        num_tokens = _complete(manager, requests)
        elapsed = time.perf_counter() - started
    finally:
        manager.stop(block=True, timeout=30)
    return num_tokens / elapsed


def _complete(manager: Any, requests: Asked) -> int:
    """Tokens generated until every request is done."""
    for prompt, count in requests:
        manager.add_request(input_ids=prompt, max_new_tokens=count)
    num_done = num_tokens = 0
    while num_done < len(requests):
        result = manager.get_result(timeout=60)
        if result is None:
            raise RuntimeError("transformers' continuous batching gave no result within 60 s")
        if result.error:
            raise RuntimeError(result.error)
        if result.is_finished():
            num_done += 1
            num_tokens += len(result.generated_tokens)
    return num_tokens


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
