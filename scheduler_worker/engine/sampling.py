"""Choosing the next token of every row at once.

The order of processing is transformers': logit bias, penalties, minimum length, then temperature, top-k,
top-p, min-p. Log probabilities are those of the model itself, before any of this. A row's token depends on
its own logits, seed and token index only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from scheduler_worker.engine.attention.base import IntArray
from scheduler_worker.engine.randomness import uniform
from scheduler_worker.engine.sequences import EngineSequence
from scheduler_worker.protocol.messages import SamplingParams

_MIN_TEMPERATURE: Final = 1e-5
"""Below this, dividing logits by the temperature overflows; the result would be greedy anyway."""
MAX_LOGPROBS: Final = 64
MAX_BIAS: Final = 1e6


class Need:
    """What a row asks beyond the likeliest token: bits of an integer (an `IntFlag` costs 1 µs an
    operation)."""

    RANDOM: Final = 1
    FILTER: Final = 2
    PENALTY: Final = 4
    BIAS: Final = 8
    MIN_TOKENS: Final = 16
    LOGPROBS: Final = 32


@dataclass(slots=True)
class SampleRows:
    """Rows of one step: their slots, the index among generated tokens of the token to choose, and which rows
    really sample (a chunk in the middle of a prompt does not)."""

    slots: IntArray
    indices: IntArray
    samples: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Sampled:
    """`ids` `[rows]` on the device; `peaks` `[rows]`, the highest logit, not finite where the row's logits
    are broken; for rows that report log probabilities, those of the chosen and the likeliest tokens.

    Ids and peaks are plain lists where the device is the host and every row takes its likeliest token.
    """

    ids: torch.Tensor | list[int]
    peaks: torch.Tensor | list[float]
    logprob_rows: IntArray | None = None
    chosen_logprobs: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None

    def beside(self, ids: torch.Tensor, peaks: torch.Tensor) -> Sampled:
        """With these ids and peaks, which are on the host or will be; log probabilities, where there are some, are on
        their way to pinned memory too."""
        rest = (self.chosen_logprobs, self.top_logprobs, self.top_ids)
        return Sampled(ids, peaks, self.logprob_rows, *(t if t is None else _download(t) for t in rest))


def _likeliest_on_host(logits: torch.Tensor) -> tuple[list[int], list[float]]:
    """Numpy's argmax is about ten times faster than torch's. Peaks are read one by one: beside the model, whose work
    empties the caches, that takes half as long as one operation for all."""
    scores = logits.numpy() if logits.dtype is torch.float32 else logits.float().numpy()
    ids: list[int] = scores.argmax(-1).tolist()
    return ids, list(map(scores.item, range(len(ids)), ids))


def _download(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def why_invalid(sampling: SamplingParams, vocab_size: int) -> str | None:
    """What is wrong with these parameters, or None. Nothing that passes can fail later."""
    s = sampling
    bias, stops = s.logit_bias, s.stop_token_ids
    rules = (
        (0 <= s.temperature < math.inf, f"temperature {s.temperature} is not 0 or more"),
        (0 < s.top_p <= 1, f"top_p {s.top_p} is not above 0 and at most 1"),
        (s.top_k >= 0, f"top_k {s.top_k} is negative"),
        (0 <= s.min_p <= 1, f"min_p {s.min_p} is not between 0 and 1"),
        (0 < s.repetition_penalty < math.inf, f"repetition_penalty {s.repetition_penalty} is not above 0"),
        (math.isfinite(s.presence_penalty), f"presence_penalty {s.presence_penalty} is not finite"),
        (math.isfinite(s.frequency_penalty), f"frequency_penalty {s.frequency_penalty} is not finite"),
        (s.min_tokens >= 0, f"min_tokens {s.min_tokens} is negative"),
        (0 <= (s.logprobs or 0) <= MAX_LOGPROBS, f"logprobs {s.logprobs} is not 0 to {MAX_LOGPROBS}"),
        (all(0 <= i < vocab_size for i in bias), "logit_bias names a token outside the vocabulary"),
        (all(abs(v) <= MAX_BIAS for v in bias.values()), f"logit_bias is not within ±{MAX_BIAS:g}"),
        (all(0 <= i < vocab_size for i in stops), "stop_token_ids names a token outside the vocabulary"),
    )
    return next((reason for holds, reason in rules if not holds), None)


def needs(sampling: SamplingParams) -> int:
    """What these parameters ask beyond the likeliest token: bits of `Need`."""
    s, need = sampling, 0
    if s.temperature >= _MIN_TEMPERATURE and s.top_k != 1:
        need |= Need.RANDOM
        if s.top_k or s.top_p < 1 or s.min_p > 0:
            need |= Need.FILTER
    if s.repetition_penalty != 1 or s.presence_penalty or s.frequency_penalty:
        need |= Need.PENALTY
    if s.logit_bias:
        need |= Need.BIAS
    if s.min_tokens:
        need |= Need.MIN_TOKENS
    if s.logprobs is not None:
        need |= Need.LOGPROBS
    return need


class Sampler:
    """Holds every slot's parameters in arrays, so that a step reads them by indexing."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._on_host = device.type == "cpu"
        self._needs = np.zeros(num_slots, dtype=np.int64)
        self._needy: set[int] = set()
        self._seeds = np.zeros(num_slots, dtype=np.uint64)
        self._temperature = np.ones(num_slots, dtype=np.float32)
        self._top_p = np.ones(num_slots, dtype=np.float32)
        self._top_k = np.zeros(num_slots, dtype=np.int64)
        self._min_p = np.zeros(num_slots, dtype=np.float32)
        self._penalties = np.zeros((num_slots, 3), dtype=np.float32)
        self._num_logprobs = np.zeros(num_slots, dtype=np.int64)
        self._min_tokens = np.zeros(num_slots, dtype=np.int64)
        self._biases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stops: dict[int, torch.Tensor] = {}
        self._seen: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None

    def occupy(self, slot: int, sequence: EngineSequence) -> None:
        """Take over a sequence's parameters and the tokens it has so far."""
        s = sequence.sampling
        need = needs(s)
        self._needs[slot] = need
        (self._needy.add if need else self._needy.discard)(slot)
        self._seeds[slot] = sequence.seed
        self._temperature[slot] = s.temperature
        self._top_p[slot] = s.top_p
        self._top_k[slot] = s.top_k or self._vocab_size
        self._min_p[slot] = s.min_p
        self._penalties[slot] = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        self._num_logprobs[slot] = s.logprobs or 0
        self._min_tokens[slot] = s.min_tokens
        if need & Need.BIAS:
            self._biases[slot] = self._bias_tensors(s.logit_bias)
        if need & Need.MIN_TOKENS:
            self._stops[slot] = self._ids(list(sequence.stop_ids))
        if need & Need.PENALTY:
            self._count_tokens(slot, sequence)

    def sample(self, logits: torch.Tensor, rows: SampleRows, likeliest: Sampled | None = None) -> Sampled:
        """The next token of each row of `logits` `[rows, vocab]`. Rows that do not sample get an unused
        one. `likeliest`: each row's likeliest token, where it is known already."""
        if not self._needy or not (needed := self._needs[rows.slots]).any():
            if self._on_host:
                return Sampled(*_likeliest_on_host(logits))
            return likeliest or Sampled(*self._likeliest(logits))
        return self._sample_by_need(logits.float(), rows, np.where(rows.samples, needed, 0))

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and logits of each row's likeliest token; where a row holds NaN, its logit is NaN."""
        if self._on_host:
            found, heights = _likeliest_on_host(logits)
            return torch.tensor(found), torch.tensor(heights, dtype=torch.float32)
        peaks, ids = logits.max(-1)
        return ids, peaks

    def _sample_by_need(self, logits: torch.Tensor, rows: SampleRows, needed: IntArray) -> Sampled:
        wanted = int(np.bitwise_or.reduce(needed))
        raw = logits
        if wanted & (Need.BIAS | Need.PENALTY | Need.MIN_TOKENS):
            logits = logits.clone()
            self._add_biases(logits, rows, needed)
            self._penalise(logits, rows, needed)
            self._forbid_stops(logits, rows, needed)
        ids, peaks = self._likeliest(logits)
        if wanted & Need.RANDOM:
            ids = self._with_draws(logits, ids, peaks, rows, needed)
        if wanted & Need.PENALTY:
            self._count_new(ids, rows, needed)
        if wanted & Need.LOGPROBS:
            return self._with_logprobs(raw, ids, peaks, rows, needed)
        return Sampled(ids, peaks)

    def _add_biases(self, logits: torch.Tensor, rows: SampleRows, needed: IntArray) -> None:
        for row in np.flatnonzero(needed & Need.BIAS):
            ids, values = self._biases[int(rows.slots[row])]
            logits[row].index_add_(0, ids, values)

    def _forbid_stops(self, logits: torch.Tensor, rows: SampleRows, needed: IntArray) -> None:
        early = (needed & Need.MIN_TOKENS > 0) & (rows.indices < self._min_tokens[rows.slots])
        for row in np.flatnonzero(early):
            logits[row].index_fill_(0, self._stops[int(rows.slots[row])], -torch.inf)

    def _penalise(self, logits: torch.Tensor, rows: SampleRows, needed: IntArray) -> None:
        """Repetition divides (or multiplies, below 0) the logits of all tokens seen, as in CTRL (arXiv
        1909.05858); presence and frequency subtract for generated tokens, as OpenAI's API documents."""
        chosen = np.flatnonzero(needed & Need.PENALTY)
        if not len(chosen):
            return
        assert self._seen is not None
        assert self._counts is not None
        index, slots = self._ids(chosen), self._ids(rows.slots[chosen])
        repetition, presence, frequency = self._floats(self._penalties[rows.slots[chosen]]).T[:, :, None]
        scores, counts = logits[index], self._counts[slots]
        generated = counts > 0
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(self._seen[slots] | generated, repeated, scores)
        logits[index] = scores - frequency * counts - presence * generated

    def _with_draws(
        self,
        logits: torch.Tensor,
        ids: torch.Tensor,
        peaks: torch.Tensor,
        rows: SampleRows,
        needed: IntArray,
    ) -> torch.Tensor:
        """`ids` with a drawn token in each row that is not greedy."""
        chosen = np.flatnonzero(needed & Need.RANDOM)
        if len(chosen) == len(needed):
            return self._draw(logits, peaks, rows.slots, rows.indices, needed)
        index = self._ids(chosen)
        slots, indices = rows.slots[chosen], rows.indices[chosen]
        ids[index] = self._draw(logits[index], peaks[index], slots, indices, needed[chosen])
        return ids

    def _draw(
        self, logits: torch.Tensor, peaks: torch.Tensor, slots: IntArray, indices: IntArray, needed: IntArray
    ) -> torch.Tensor:
        """A token for each row. Two numbers are spent on a token: one over the whole vocabulary, one over
        what the filters leave, for the rows whose first draw they reject."""
        temperature = self._floats(self._temperature[slots])[:, None]
        weights = (logits - peaks[:, None]).div_(temperature).exp_()
        seeds = self._seeds[slots]
        ids = self._pick(weights, uniform(seeds, indices * 2))
        again = self._rejected(weights, ids, slots, needed)
        if len(again):
            index = self._ids(again)
            kept = weights[index]
            floor = weight_floor(kept, *self._filters(slots[again]))
            kept *= torch.ge(kept, floor[:, None], out=torch.empty_like(kept))
            ids[index] = self._pick(kept, uniform(seeds[again], indices[again] * 2 + 1))
        return ids

    def _pick(self, weights: torch.Tensor, draws: npt.NDArray[np.float64]) -> torch.Tensor:
        if self._on_host:
            return torch.from_numpy(pick_on_host(weights.numpy(), draws))
        return pick_on_device(weights, torch.from_numpy(draws).to(self._device, non_blocking=True))

    def _rejected(
        self,
        weights: torch.Tensor,
        ids: torch.Tensor,
        slots: IntArray,
        needed: IntArray,
    ) -> IntArray:
        """Rows whose drawn token their filters do not allow.

        Accepting or rejecting a draw is exact and needs no sorting; most draws are accepted. On a device
        that would mean waiting for it, so there all filtered rows are drawn again.
        """
        filtered = np.flatnonzero(needed & Need.FILTER)
        if not len(filtered) or not self._on_host:
            return filtered
        if len(filtered) < len(needed):
            index = self._ids(filtered)
            weights, ids = weights[index], ids[index]
        accepted = allowed(weights, ids, *self._filters(slots[filtered]))
        return filtered[~accepted.numpy()]

    def _filters(self, slots: IntArray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        top_k = self._ids(np.minimum(self._top_k[slots], self._vocab_size))
        return top_k, self._floats(self._top_p[slots]), self._floats(self._min_p[slots])

    def _with_logprobs(
        self, raw: torch.Tensor, ids: torch.Tensor, peaks: torch.Tensor, rows: SampleRows, needed: IntArray
    ) -> Sampled:
        chosen = np.flatnonzero(needed & Need.LOGPROBS)
        index = self._ids(chosen)
        logprobs = raw[index].log_softmax(-1)
        top = logprobs.topk(max(1, int(self._num_logprobs[rows.slots[chosen]].max())), dim=-1)
        picked = logprobs.gather(1, ids[index][:, None])[:, 0]
        return Sampled(ids, peaks, chosen, picked, top.values, top.indices)

    def _count_tokens(self, slot: int, sequence: EngineSequence) -> None:
        if self._seen is None or self._counts is None:
            size = (len(self._needs), self._vocab_size)
            self._seen = torch.zeros(size, dtype=torch.bool, device=self._device)
            self._counts = torch.zeros(size, dtype=torch.int32, device=self._device)
        tokens = np.frombuffer(sequence.tokens, dtype=np.uint32).astype(np.int64)
        prompt, output = tokens[: sequence.num_prompt_tokens], tokens[sequence.num_prompt_tokens :]
        self._seen[slot].zero_().index_fill_(0, self._ids(prompt), True)
        counts = np.bincount(output, minlength=self._vocab_size).astype(np.int32)
        self._counts[slot] = torch.from_numpy(counts).to(self._device)

    def _count_new(self, ids: torch.Tensor, rows: SampleRows, needed: IntArray) -> None:
        assert self._counts is not None
        chosen = np.flatnonzero(needed & Need.PENALTY)
        self._counts[self._ids(rows.slots[chosen]), ids[self._ids(chosen)]] += 1

    def _bias_tensors(self, bias: dict[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
        values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        return self._ids(list(bias)), self._floats(values)

    def _ids(self, values: IntArray | list[int]) -> torch.Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)

    def _floats(self, values: npt.NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def allowed(
    weights: torch.Tensor,
    ids: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """`[rows]`: whether each row's token passes its filters; False also where that takes sorting to tell
    (top-k and top-p together). See `weight_floor` for the filters."""
    vocab_size = weights.shape[1]
    own = weights.gather(1, ids[:, None])
    likelier = torch.gt(weights, own, out=torch.empty_like(weights))
    passes = own[:, 0] >= min_p
    limited = top_k < vocab_size
    if bool(limited.any()):
        passes &= (likelier.sum(-1) < top_k) & (~limited | (top_p >= 1))
    if bool((top_p < 1).any()):
        passes &= (likelier.mul_(weights).sum(-1) < top_p * weights.sum(-1)) | (top_p >= 1)
    return passes


def weight_floor(
    weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """`[rows]`: the least weight that a token needs to pass top-k, then top-p, then min-p; ties with it pass.

    `weights` `[rows, vocab]` are probabilities up to a factor, the largest of each row 1. top-p is nucleus
    sampling (arXiv 1904.09751): the fewest tokens whose probability reaches it; min-p (arXiv 2407.01082) is
    relative to the likeliest token. `top_k` of the vocabulary's size, `top_p` 1 and `min_p` 0 are off.
    """
    best = _descending(weights, int(top_k.max()))
    kept = best * (torch.arange(best.shape[1], device=best.device) < top_k[:, None])
    before = kept.cumsum(-1) - kept
    reach = torch.where(top_p < 1, top_p, torch.inf) * kept.sum(-1)
    num_kept = torch.minimum((before < reach[:, None]).sum(-1), top_k).clamp_(min=1)
    return torch.maximum(best.gather(1, num_kept[:, None] - 1)[:, 0], min_p)


def _descending(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Each row's `count` largest weights in order; on the CPU numpy sorts ten times faster than torch."""
    if weights.device.type != "cpu":
        return weights.topk(count, dim=-1).values if count < 1024 else weights.sort(descending=True).values
    values, vocab_size = weights.numpy(), weights.shape[1]
    if count < vocab_size // 8:
        values = np.partition(values, vocab_size - count, axis=-1)[:, vocab_size - count :]
    return torch.from_numpy(np.sort(values, axis=-1)).flip(-1)


_STRIDE: Final = 256
_BELOW_ONE: Final = 1 - 1e-12
"""Keeps a rounded target below the last cumulative sum, so that a token of weight 0 is never chosen."""


def pick_on_host(weights: npt.NDArray[np.float32], draws: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """One token of each row in proportion to its weights: the inverse of their cumulative sum at `draws` in
    [0, 1).

    Two levels, so that only block sums and one block are accumulated; in float64, as thousands of small
    terms lose their tail in float32.
    """
    num_rows, vocab_size = weights.shape
    if vocab_size % _STRIDE:
        weights = np.pad(weights, ((0, 0), (0, -vocab_size % _STRIDE)))
    blocks = weights.reshape(num_rows, -1, _STRIDE)
    every = np.arange(num_rows)
    sums = blocks.sum(-1)
    ends = sums.cumsum(-1, dtype=np.float64)
    targets = draws * _BELOW_ONE * ends[:, -1]
    block = (ends <= targets[:, None]).sum(-1)
    block = np.minimum(block, ends.shape[1] - 1)
    inside = blocks[every, block].cumsum(-1, dtype=np.float64)
    rest = targets - ends[every, block] + sums[every, block]
    rest = np.minimum(rest, inside[:, -1] * _BELOW_ONE)
    return block * _STRIDE + np.minimum((inside <= rest[:, None]).sum(-1), _STRIDE - 1)


def pick_on_device(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """As `pick_on_host`, in few kernels."""
    ends = weights.double().cumsum(-1)
    targets = (draws * _BELOW_ONE)[:, None] * ends[:, -1:]
    return torch.searchsorted(ends, targets, right=True)[:, 0].clamp_(max=weights.shape[1] - 1)
