"""Steps as CUDA graphs: a whole forward pass with its likeliest tokens, launched by one call.

A graph is captured for each of a few shapes (`GraphShape`); a step runs in the smallest that holds it, padded with
rows that write to the cache's scratch block and whose results nobody reads. Tokens that only the device knows are
read from, and new ones written to, `last_ids` inside the graph.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from transformers import PreTrainedModel

from scheduler_worker.engine.attention.base import LayerSpec
from scheduler_worker.engine.attention.capturable import GraphShape, MakeCapturable, PinnedMirror
from scheduler_worker.engine.attention.opaque import OPAQUE_NAME, attending, number_layers
from scheduler_worker.engine.batch import PackedBatch
from scheduler_worker.engine.compiling import CompiledParts, first_of_each_kind
from scheduler_worker.engine.inspection import own_attention
from scheduler_worker.engine.kv_cache import KVCache
from scheduler_worker.engine.rotary import one_rotary_kernel
from scheduler_worker.engine.sampling import Sampled
from scheduler_worker.engine.skinny import skinny_linears

logger = logging.getLogger(__name__)

_DECODE_BUCKETS: Final = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512)
_MIXED_BUCKETS: Final = (96, *range(128, 384, 64), *range(384, 1537, 128), 1792, 2048)
"""Tokens of steps with chunks, one-token rows included: libraries multiply whole tiles of 128 rows, and some sizes
between them slowly (on an H200 448 rows by an 8B model's gate and up take 1.7 times as long as 512)."""
_MAX_CHUNKS: Final = 64
_MIN_CHUNK_TOKENS: Final = _MAX_CHUNKS
"""A shape is captured with at least one token for each chunk that it may hold."""
_MAX_CHUNK_TOKENS: Final = _MIXED_BUCKETS[-1]

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(slots=True)
class GraphOutput:
    """`logits` `[rows, vocab]` and each row's likeliest token; valid until the next step is launched."""

    logits: torch.Tensor
    likeliest: Sampled


class _Inputs:
    """What one graph reads, in one buffer: for each token its id, position, place in the cache and the slot
    whose last token it is (-1: its id is given); for each row its last token and its slot."""

    def __init__(self, shape: GraphShape, num_slots: int, device: torch.device) -> None:
        self._num_tokens, self._num_rows = shape.num_tokens, _num_rows(shape, num_slots)
        self._mirror = PinnedMirror(4 * self._num_tokens + 2 * self._num_rows, torch.int64, device)
        self.host = self._cut(self._mirror.host)
        self.device = self._cut(self._mirror.device)

    def _cut(self, whole: Any) -> tuple[Any, Any, Any, Any, Any, Any]:
        tokens, rows = self._num_tokens, self._num_rows
        begin = 4 * tokens
        return (
            whole[:tokens],
            whole[tokens : 2 * tokens],
            whole[2 * tokens : 3 * tokens],
            whole[3 * tokens : begin],
            whole[begin : begin + rows],
            whole[begin + rows :],
        )

    def upload(self) -> None:
        self._mirror.upload(len(self._mirror.host))


class StepGraph:
    """One captured shape."""

    def __init__(
        self,
        shape: GraphShape,
        cache: KVCache,
        make_attention: MakeCapturable,
        last_ids: torch.Tensor,
    ) -> None:
        self._shape = shape
        self._last_ids = last_ids
        self._scratch_index = cache.scratch_block * cache.shape.block_size
        self._inputs = _Inputs(shape, len(last_ids) - 1, cache.keys.device)
        self._attention = make_attention(shape, self._inputs.device[2])
        self._graph = torch.cuda.CUDAGraph()
        self._reset_inputs()
        self._inputs.upload()

    def capture(self, forward: Forward, pool: Any) -> None:
        """Record the graph. `run_once` has compiled what its shape needs, which a recording could not."""
        with attending(self._attention.attend), torch.cuda.graph(self._graph, pool=pool):
            self._logits, self._ids, self._peaks = self._step(forward)

    def run_once(self, forward: Forward) -> None:
        """The step as it is, with nothing in it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with attending(self._attention.attend), torch.cuda.stream(stream):
            self._step(forward)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _step(self, forward: Forward) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, positions, _, fed_slots, last_tokens, slots = self._inputs.device
        logits, ids, peaks = forward(tokens, positions, fed_slots, last_tokens, self._last_ids)
        self._last_ids.index_copy_(0, slots, ids)
        return logits, ids, peaks

    def stage(self, batch: PackedBatch) -> None:
        """Send a step's inputs to the graph's buffers."""
        self._fill(batch)
        self._inputs.upload()
        self._attention.stage(batch.attention)

    def replay(self, num_rows: int) -> GraphOutput:
        """Launch; the output's first `num_rows` rows."""
        self._graph.replay()
        return GraphOutput(self._logits[:num_rows], Sampled(self._ids[:num_rows], self._peaks[:num_rows]))

    def _reset_inputs(self) -> None:
        tokens, positions, write_index, fed_slots, last_tokens, slots = self._inputs.host
        for values in (tokens, positions, last_tokens):
            values[:] = 0
        write_index[:] = self._scratch_index
        fed_slots[:] = -1
        slots[:] = len(self._last_ids) - 1

    def _fill(self, batch: PackedBatch) -> None:
        """One-token rows begin at 0, chunks behind the last place for such a row."""
        attention = batch.attention
        split, gap = attention.num_decode_rows, self._shape.num_decode_rows - attention.num_decode_rows
        tokens, positions, write_index, fed_slots, last_tokens, slots = self._inputs.host
        for values, given, padding in (
            (tokens, batch.input_ids, 0),
            (positions, batch.positions, 0),
            (write_index, attention.write_index.numpy(), self._scratch_index),
        ):
            end = len(given) + gap
            values[:split] = given[:split]
            values[split : split + gap] = padding
            values[split + gap : end] = given[split:]
            values[end:] = padding
        last, num_rows = batch.last_tokens, len(batch.last_tokens)
        last_tokens[:num_rows] = last
        last_tokens[split:num_rows] += gap
        last_tokens[num_rows:] = 0
        slots[:num_rows] = attention.slots
        slots[num_rows:] = len(self._last_ids) - 1
        fed_slots[:] = -1
        fed = batch.fed_positions
        fed_slots[fed if split == len(batch.input_ids) else np.where(fed < split, fed, fed + gap)] = batch.fed_slots


class StepGraphs:
    """All captured shapes of one engine: compiled when made, recorded by `capture`."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache,
        make_attention: MakeCapturable,
        last_ids: torch.Tensor,
        layers: tuple[LayerSpec, ...],
        compile_model: bool,
    ) -> None:
        self._model = model
        self._layers = layers
        self._last_ids = last_ids
        number_layers(model)
        self._parts = CompiledParts(model) if compile_model else None
        self._feed, self._likeliest = (
            (torch.compile(one, dynamic=True) if compile_model else one) for one in (_fed_ids, _likeliest)
        )
        num_slots = len(last_ids) - 1
        self._decode_buckets, self._row_buckets = _decode_buckets(num_slots), _row_buckets(num_slots)
        self._chunk_buckets = {rows: _chunk_buckets(rows, num_slots) for rows in self._row_buckets}
        self._build = lambda shape: StepGraph(shape, cache, make_attention, last_ids)
        self._graphs: dict[GraphShape, StepGraph] = {}
        self._staged = torch.cuda.Event()
        self._shapes = sorted(graph_shapes(num_slots), key=lambda shape: -shape.num_tokens)
        if compile_model:
            self._compile(self._shapes[0], cache.keys.device)

    def run(self, batch: PackedBatch) -> GraphOutput | None:
        """Launch the step, or None if no graph holds it."""
        shape = self._shape_for(batch)
        if shape is None:
            return None
        graph = self._graphs[shape]
        self._staged.synchronize()  # the previous step's inputs have left the host's buffers
        graph.stage(batch)
        self._staged.record()
        return graph.replay(len(batch.last_tokens))

    def _shape_for(self, batch: PackedBatch) -> GraphShape | None:
        attention = batch.attention
        num_decodes = attention.num_decode_rows
        num_chunks = attention.num_rows - num_decodes
        if not num_chunks:
            return GraphShape(_at_least(self._decode_buckets, num_decodes))
        num_tokens = len(batch.input_ids) - num_decodes
        if num_chunks > _MAX_CHUNKS or num_tokens > _MAX_CHUNK_TOKENS:
            return None
        rows = _at_least(self._row_buckets, num_decodes)
        return GraphShape(rows, _MAX_CHUNKS, _at_least(self._chunk_buckets[rows], num_tokens))

    @torch.inference_mode()
    def _compile(self, shape: GraphShape, device: torch.device) -> None:
        """Without attention to chunks, whose kernels may still be compiled elsewhere. Of the largest shape first, whose
        numbers of tokens and rows differ: a compiler takes equal ones for one. Then what few and many one-token rows
        need."""
        started = time.perf_counter()
        inputs = _Inputs(shape, len(self._last_ids) - 1, device)
        tokens, positions, _, fed_slots, last_tokens, _ = inputs.device
        with self._capturable_model(), attending(_no_attention):
            self._next_tokens(tokens, positions, fed_slots, last_tokens, self._last_ids)
        with self._capturable_model():
            for rows in {self._decode_buckets[0], self._decode_buckets[-1]}:
                self._build(GraphShape(rows)).run_once(self._next_tokens)
        torch.cuda.synchronize()
        logger.info("compiled the model in %.1f s", time.perf_counter() - started)

    @torch.inference_mode()
    def capture(self) -> None:
        """Record every shape."""
        torch.cuda.empty_cache()
        started, free = time.perf_counter(), torch.cuda.mem_get_info()[0]
        pool, shapes = torch.cuda.graph_pool_handle(), self._shapes
        self._graphs = {shape: self._build(shape) for shape in shapes}
        with self._capturable_model():
            with first_of_each_kind(self._model, self._layers):
                for graph in self._graphs.values():
                    graph.run_once(self._next_tokens)
            for number, graph in enumerate(self._graphs.values(), start=1):
                graph.capture(self._next_tokens, pool)
                if number == 1 or number % 16 == 0:
                    logger.info("captured %d of %d CUDA graphs", number, len(shapes))
        self._staged.record()
        logger.info(
            "captured %d CUDA graphs in %.1f s, %.2f GiB",
            len(shapes),
            time.perf_counter() - started,
            (free - torch.cuda.mem_get_info()[0]) / 2**30,
        )

    def _next_tokens(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        fed_slots: torch.Tensor,
        last_tokens: torch.Tensor,
        last_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        output = self._model(
            input_ids=self._feed(tokens, fed_slots, last_ids)[None],
            position_ids=positions[None],
            use_cache=False,
            logits_to_keep=last_tokens,
        )
        logits = output.logits[0]
        peaks, ids = self._likeliest(logits)
        return logits, ids, peaks

    @contextmanager
    def _capturable_model(self) -> Iterator[None]:
        """The model with attention, rotation and products by operators of their own, in its compiled parts."""
        parts = self._parts.in_place() if self._parts else nullcontext()
        own = own_attention(self._model, OPAQUE_NAME), one_rotary_kernel(self._model), skinny_linears(self._model)
        with own[0], own[1], own[2], parts:
            yield


def _fed_ids(tokens: torch.Tensor, fed_slots: torch.Tensor, last_ids: torch.Tensor) -> torch.Tensor:
    return torch.where(fed_slots >= 0, last_ids[fed_slots.clamp(min=0)], tokens)


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    peaks, ids = logits.max(-1)
    return peaks, ids


def _no_attention(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return query.new_zeros((query.shape[0], query.shape[1], value.shape[2]))


def largest_shape(num_slots: int) -> GraphShape:
    """The most rows and tokens of chunks that any graph of an engine holds. A compiled dimension is never 1."""
    return GraphShape(max(2, num_slots), _MAX_CHUNKS, _MAX_CHUNK_TOKENS)


def graph_shapes(num_slots: int) -> list[GraphShape]:
    """Every shape that an engine of so many slots captures."""
    return [
        *(
            GraphShape(rows, _MAX_CHUNKS, tokens)
            for rows in _row_buckets(num_slots)
            for tokens in _chunk_buckets(rows, num_slots)
        ),
        *(GraphShape(rows) for rows in _decode_buckets(num_slots)),
    ]


def output_bytes(num_slots: int, vocab_size: int, itemsize: int) -> int:
    """The logits of all graphs: each keeps its own, by far the most of what graphs need."""
    return sum(_num_rows(shape, num_slots) for shape in graph_shapes(num_slots)) * vocab_size * itemsize


def _num_rows(shape: GraphShape, num_slots: int) -> int:
    """Rows that yield a token: each row of a step has a slot of its own. A compiled dimension is never 1."""
    return min(shape.num_decode_rows + shape.num_chunks, max(2, num_slots))


def _decode_buckets(num_slots: int) -> list[int]:
    largest = largest_shape(num_slots).num_decode_rows
    return [*(size for size in _DECODE_BUCKETS if size < num_slots), largest]


def _row_buckets(num_slots: int) -> list[int]:
    """One-token rows beside chunks."""
    largest = largest_shape(num_slots).num_decode_rows
    return sorted({max(2, num_slots * quarter // 4) for quarter in (1, 2, 3)} | {largest})


def _chunk_buckets(rows: int, num_slots: int) -> list[int]:
    """Tokens of chunks beside so many one-token rows. A full step has fewer rows than that, by up to a quarter of the
    slots: room for that many more tokens of chunks."""
    totals = (*_MIXED_BUCKETS, _MAX_CHUNK_TOKENS + _row_buckets(num_slots)[0])
    beside = {min(total - rows, _MAX_CHUNK_TOKENS) for total in totals if total - rows >= _MIN_CHUNK_TOKENS}
    return sorted(beside | {_MAX_CHUNK_TOKENS})


def _at_least(buckets: Any, wanted: int) -> int:
    return next(size for size in buckets if size >= wanted)
