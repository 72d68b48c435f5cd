"""`TorchExecutor`: runs step plans on a transformers model with a paged KV cache.

The life of a step: move blocks (copy out, copy in), place sequences in slots, pack the chunks, plan the
attention, forward, sample; then, in `collect`, tokens to the host and the report. `launch` does all of the
first part without waiting for the device; sampled ids stay on it to feed the next step.
"""

from __future__ import annotations

import logging
import platform
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import torch

from scheduler_worker.core.chunks import StepChunks
from scheduler_worker.core.plan import Capacity, Chunk, StepPlan, SwapIn
from scheduler_worker.engine.attention.base import AttentionBackend, LayerSpec, to_device
from scheduler_worker.engine.attention.flashinfer import FlashInferBackend, can_use_flashinfer
from scheduler_worker.engine.attention.sdpa import SdpaBackend
from scheduler_worker.engine.batch import PackedBatch, Packer
from scheduler_worker.engine.block_tables import BlockTables
from scheduler_worker.engine.checkpoints import (
    BlockCopier,
    CheckpointStore,
    DiskCheckpoints,
    MemoryCheckpoints,
)
from scheduler_worker.engine.cuda_graphs import StepGraphs, largest_shape, output_bytes
from scheduler_worker.engine.errors import CheckpointDamaged, SettingsError
from scheduler_worker.engine.fusing import fuse_linears
from scheduler_worker.engine.inspection import check_logits, check_tokens, inspect_model, refuse_if_different
from scheduler_worker.engine.kv_cache import KVCache, kv_shape
from scheduler_worker.engine.loading import LoadedModel, fingerprint
from scheduler_worker.engine.mapped import Landing, landings
from scheduler_worker.engine.outputs import NOT_FINITE, LaunchedStep, filled_blocks, step_rows
from scheduler_worker.engine.packing import pack_linears, unpack_linears
from scheduler_worker.engine.pinned_checkpoints import PinnedCheckpoints
from scheduler_worker.engine.rows import Stager, StepRows
from scheduler_worker.engine.runner import ModelRunner
from scheduler_worker.engine.sampling import Sampled, Sampler, why_invalid
from scheduler_worker.engine.sequences import EngineSequence, new_sequence
from scheduler_worker.engine.settings import EngineSettings
from scheduler_worker.engine.start_clock import StartClock
from scheduler_worker.executor import ExecutorInfo, OutOfMemory, SequenceInput, StepOutput
from scheduler_worker.protocol.messages import SamplingParams

logger = logging.getLogger(__name__)


class TorchExecutor:
    """The engine's `Executor`. All calls come from one thread; where that is in `torch.inference_mode` for good, no
    step pays for entering it."""

    def __init__(self, loaded: LoadedModel, settings: EngineSettings) -> None:
        model, clock = loaded.model, StartClock()
        self._loaded = loaded
        self._device = model.device
        self._on_host = model.device.type == "cpu"
        own_logits = check_logits(model) if settings.self_check else None
        clock.ended("the model's own logits")
        if settings.fuse_linears and self._device.type == "cuda":
            fuse_linears(model)
        if settings.pack_linears and self._on_host:
            pack_linears(model)
        layers = inspect_model(model, loaded.name)
        clock.ended("layers")
        self._max_model_len = _max_model_len(loaded, settings)
        shape = kv_shape(
            layers, settings, model.dtype, self._device, self._max_model_len, _graph_bytes(loaded, settings)
        )
        self._max_model_len = min(self._max_model_len, shape.num_blocks * shape.block_size)
        self._cache = KVCache(shape, self._device)
        self._tables = BlockTables(
            settings.num_slots, -(-self._max_model_len // shape.block_size), self._cache.null_block
        )
        self._max_in_flight_steps = settings.max_in_flight_steps or (2 if self._device.type == "cuda" else 1)
        in_place = self._on_host and self._max_in_flight_steps == 1  # else tokens come later than rows
        self._packer = Packer(self._tables.table, shape.block_size, in_place)
        self._backend = _backend(settings, self._cache, layers, self._device, self._max_model_len)
        self._runner = ModelRunner(model, self._backend)
        self._sampler = Sampler(settings.num_slots, loaded.vocab_size, self._device)
        self._checkpoints = _checkpoints(settings, self._cache, loaded)
        self._num_swap_blocks = settings.swap_bytes // shape.block_bytes
        self._swap_block_s = _swap_block_s(self._cache)
        self._num_slots = settings.num_slots
        # One more than there are slots: a captured step's padding writes there.
        self._last_ids = torch.zeros(settings.num_slots + 1, dtype=torch.int64, device=self._device)
        self._sequences: dict[str, EngineSequence] = {}
        self._launched: deque[LaunchedStep] = deque()
        self._num_launched = 0
        self._landings: list[Landing] = []
        if not self._on_host:
            self._landings = landings(self._max_in_flight_steps + 1, settings.num_slots, self._device)
        self._stager = Stager(self._sequences, self._tables, shape.block_size, self._occupy)
        clock.ended("cache")
        with ThreadPoolExecutor(1, thread_name_prefix="attention") as beside:
            prepared = beside.submit(self._backend.prepare)
            self._graphs = self._compile(settings, layers)  # minutes without a cache, both
            clock.ended("compiling")
            prepared.result()
        clock.ended("attention")
        if own_logits is not None:
            self._check_against(own_logits)
        clock.ended("check")
        if self._graphs is not None:
            self._graphs.capture()
        clock.ended("graphs")
        logger.info("engine ready (%s): %s", clock, self.info)

    @property
    def capacity(self) -> Capacity:
        return Capacity(
            num_slots=self._num_slots,
            num_blocks=self._cache.shape.num_blocks,
            block_size=self._cache.shape.block_size,
            max_model_len=self._max_model_len,
            max_in_flight_steps=self._max_in_flight_steps,
            num_swap_blocks=self._num_swap_blocks,
            swap_block_s=self._swap_block_s,
        )

    @property
    def info(self) -> ExecutorInfo:
        model = self._loaded.model
        return ExecutorInfo(
            model=self._loaded.name,
            device=str(self._device),
            device_name=_device_name(self._device),
            dtype=str(model.dtype).removeprefix("torch."),
            attention_backend=self._backend.name,
            memory_total_bytes=_memory_total_bytes(self._device),
            weights_bytes=sum(parameter.nbytes for parameter in model.parameters()),
            kv_cache_bytes=self._cache.num_bytes,
        )

    def add(self, sequence: SequenceInput) -> None:
        """Make a sequence known. One that cannot be computed is kept with the reason, and its rows fail
        alone."""
        error = self._why_impossible(sequence)
        seed = sequence.sampling.seed
        self._sequences[sequence.seq_id] = new_sequence(
            sequence,
            seed=(secrets.randbits(64) if seed is None else seed) & 0xFFFF_FFFF_FFFF_FFFF,
            eos_token_ids=self._loaded.eos_token_ids,
            error=error,
        )

    def launch(self, plan: StepPlan) -> None:
        """Start a plan. Raises `OutOfMemory` with everything as it was before, steps launched earlier
        included."""
        if torch.is_inference_mode_enabled():
            self._launch(plan)
        else:
            with torch.inference_mode():
                self._launch(plan)

    def _launch(self, plan: StepPlan) -> None:
        step = LaunchedStep(plan, StepChunks.of(plan))
        self._tables.start_step()
        try:
            self._start(step)
        except (RuntimeError, MemoryError) as error:
            self._undo(step)
            if _is_out_of_memory(error):
                raise OutOfMemory(f"no memory for step {plan.step}: {error}") from error
            raise
        for swap_in in plan.swap_ins:
            self._checkpoints.forget(swap_in.seq_id)
        self._launched.append(step)
        self._num_launched += 1

    def wait(self) -> None:
        """Until `collect` would not wait: for who times the two apart."""
        if self._launched and (landing := self._launched[0].landing) is not None:
            landing.done.synchronize()

    def collect(self) -> StepOutput:
        """The output of the oldest launched step; waits for it."""
        self.wait()
        step = self._launched.popleft()
        rows = step_rows(step)
        if step.rows is not None:
            for row in step.broken:
                self._contain(step.rows, row)
        return StepOutput(
            step=step.plan.step,
            rows=rows,
            duration_s=step.duration_s(),
            forward_s=step.forward_s,
            filled_blocks=filled_blocks(step, self._cache.shape.block_size),
            is_plain=step.is_plain,
        )

    def remove(self, seq_id: str) -> None:
        """Forget a sequence that no outstanding plan names. Unknown ids are ignored."""
        sequence = self._sequences.pop(seq_id, None)
        self._stager.forget()
        if sequence is not None:
            self._tables.vacate(sequence)
        self._checkpoints.forget(seq_id)

    def close(self) -> None:
        """Release the device."""
        self._launched.clear()
        self._sequences.clear()
        self._checkpoints.close()
        unpack_linears(self._loaded.model)

    def _start(self, step: LaunchedStep) -> None:
        started = time.perf_counter()
        self._move_blocks(step.plan)
        step.rows, step.failed = self._stager.stage(step.plan.step, step.chunks)
        if step.rows is not None:
            step.rows.expect_tokens()
            self._compute(step, step.rows)
        step.host_s = time.perf_counter() - started

    def _move_blocks(self, plan: StepPlan) -> None:
        for swap_out in plan.swap_outs:
            sequence = self._sequences.get(swap_out.seq_id)
            if sequence is not None:
                self._checkpoints.save(sequence, swap_out.blocks)
                self._tables.vacate(sequence)
        for seq_id in plan.evicted:
            sequence = self._sequences.get(seq_id)
            if sequence is not None:
                self._tables.vacate(sequence)
        for swap_in in plan.swap_ins:
            self._swap_in(swap_in)

    def _swap_in(self, swap_in: SwapIn) -> None:
        sequence = self._sequences.get(swap_in.seq_id)
        if sequence is None:
            return
        try:
            self._checkpoints.load(sequence, swap_in.blocks)
        except CheckpointDamaged as error:
            sequence.error = str(error)
            return
        self._occupy(sequence, swap_in.slot, swap_in.blocks)

    def _occupy(self, sequence: EngineSequence, slot: int, blocks: tuple[int, ...]) -> None:
        self._tables.place(sequence, slot, blocks)
        self._sampler.occupy(slot, sequence)

    def _compute(self, step: LaunchedStep, rows: StepRows) -> None:
        landing = None
        if self._landings:  # in turn; one whose step failed to start is used again
            landing = self._landings[self._num_launched % len(self._landings)]
            landing.started.record()
        batch = self._packer.pack(rows)
        captured = self._graphs.run(batch) if self._graphs else None
        if captured is None:
            sampled = self._sampler.sample(self._forward(batch), batch.sampling)
            step.forward_s = self._runner.forward_s if landing is None else 0.0
        else:
            sampled = self._sampler.sample(captured.logits, batch.sampling, captured.likeliest)
        if self._max_in_flight_steps > 1 and (captured is None or sampled is not captured.likeliest):
            self._keep_for_next_step(batch, sampled)
        if landing is not None:
            sampled = landing.bring(sampled)
            landing.done.record()
        step.sampled, step.landing = sampled, landing

    def _forward(self, batch: PackedBatch) -> torch.Tensor:
        """`[rows, vocab]` logits by the eager model."""
        inputs = batch.inputs(self._device)
        if len(batch.fed_positions):
            self._feed(batch, inputs.input_ids)
        self._runner.plan(batch.attention)
        return self._runner.forward(inputs.input_ids, inputs.position_ids, inputs.last_tokens)

    def _compile(self, settings: EngineSettings, layers: tuple[LayerSpec, ...]) -> StepGraphs | None:
        if not settings.cuda_graphs or self._device.type != "cuda":
            return None
        num_columns = self._tables.table.shape[1]
        make_attention = self._backend.capturable(largest_shape(self._num_slots), num_columns)
        if make_attention is None:
            return None
        return StepGraphs(
            self._loaded.model, self._cache, make_attention, self._last_ids, layers, settings.compile_model
        )

    def _feed(self, batch: PackedBatch, input_ids: torch.Tensor) -> None:
        """Fill in the tokens that earlier steps left on the device."""
        places, slots = (to_device(one, self._device) for one in (batch.fed_positions, batch.fed_slots))
        input_ids[0, places] = self._last_ids[slots]

    def _keep_for_next_step(self, batch: PackedBatch, sampled: Sampled) -> None:
        """A step that is launched before this one is collected takes its tokens from here."""
        ids = torch.as_tensor(sampled.ids)
        self._last_ids.index_copy_(0, to_device(batch.sampling.slots, self._device), ids)

    @torch.inference_mode()
    def _contain(self, rows: StepRows, row: int) -> None:
        """A row with broken logits: its sequence is over, and what it wrote must not reach others as
        padding."""
        sequence, start = rows.sequences[row], int(rows.starts[row])
        sequence.error = NOT_FINITE
        self._stager.forget()
        block_size = self._cache.shape.block_size
        last_block = -(-(start + int(rows.counts[row])) // block_size)
        self._cache.scrub(sequence.blocks[start // block_size : last_block])

    def _undo(self, step: LaunchedStep) -> None:
        self._stager.forget()
        if step.rows is not None:
            step.rows.expect_no_tokens()
            self._scrub_written(step.rows)
        for sequence in self._tables.undo_step():
            if sequence.slot is not None:
                self._sampler.occupy(sequence.slot, sequence)

    def _scrub_written(self, rows: StepRows) -> None:
        """A step that failed midway may have written NaN, and its blocks may go to others before it is run again."""
        spans = zip(rows.sequences, rows.starts.tolist(), rows.counts.tolist(), strict=True)
        for sequence, start, count in spans:
            self._cache.scrub_tokens(sequence.blocks, start, start + count)

    def _why_impossible(self, sequence: SequenceInput) -> str | None:
        num_tokens, vocab_size = len(sequence.token_ids), self._loaded.vocab_size
        if num_tokens == 0:
            return "the prompt is empty"
        if num_tokens > self._max_model_len:
            return f"{num_tokens} tokens do not fit the context of {self._max_model_len}"
        if min(sequence.token_ids) < 0 or max(sequence.token_ids) >= vocab_size:
            return f"a token id is outside the vocabulary of {vocab_size}"
        return why_invalid(sequence.sampling, vocab_size)

    @torch.inference_mode()
    def _check_against(self, own_logits: torch.Tensor) -> None:
        """Refuse a model whose logits with the paged attention are not its own."""
        ids = check_tokens(self._loaded.model)[0].tolist()
        num_blocks = -(-len(ids) // self._cache.shape.block_size)
        if num_blocks > self._cache.shape.num_blocks:
            return
        sequence = new_sequence(_probe(ids), 0, frozenset(), None)
        blocks = tuple(range(num_blocks))
        self._tables.place(sequence, 0, blocks)
        half = len(ids) // 2
        for chunk in (Chunk("", 0, 0, half, False), Chunk("", 0, half, len(ids) - half, True)):
            logits = self._forward(self._packer.pack(StepRows.of([(0, sequence, chunk)])))
        self._tables.vacate(sequence)
        self._cache.scrub(list(blocks))
        refuse_if_different(own_logits, logits[0].float(), self._loaded.name)


def _probe(ids: list[int]) -> SequenceInput:
    return SequenceInput("", ids, len(ids), SamplingParams())


def _graph_bytes(loaded: LoadedModel, settings: EngineSettings) -> int:
    """Device memory that CUDA graphs will need, if the engine captures any."""
    model = loaded.model
    if model.device.type != "cuda" or not settings.cuda_graphs or settings.attention_backend == "sdpa":
        return 0
    return output_bytes(settings.num_slots, loaded.vocab_size, model.dtype.itemsize)


def _max_model_len(loaded: LoadedModel, settings: EngineSettings) -> int:
    wanted = settings.max_model_len or loaded.max_position
    if wanted > loaded.max_position:
        raise SettingsError(
            f"engine setting max_model_len is {wanted}; {loaded.name} has a context of {loaded.max_position}"
        )
    return wanted


def _backend(
    settings: EngineSettings,
    cache: KVCache,
    layers: tuple[LayerSpec, ...],
    device: torch.device,
    max_model_len: int,
) -> AttentionBackend:
    wanted = settings.attention_backend
    if wanted == "flashinfer" or (wanted == "auto" and can_use_flashinfer(cache)):
        return FlashInferBackend(cache, layers, device)
    return SdpaBackend(cache, layers, device, max_model_len)


def _checkpoints(settings: EngineSettings, cache: KVCache, loaded: LoadedModel) -> CheckpointStore:
    if settings.checkpoint_dir is None:
        return _memory_checkpoints(settings, cache)
    return DiskCheckpoints(cache, Path(settings.checkpoint_dir), fingerprint(loaded.model))


def _memory_checkpoints(settings: EngineSettings, cache: KVCache) -> CheckpointStore:
    num_blocks = settings.swap_bytes // cache.shape.block_bytes
    return PinnedCheckpoints(cache, num_blocks) if cache.keys.is_cuda else MemoryCheckpoints(cache)


@torch.inference_mode()
def _swap_block_s(cache: KVCache) -> float:
    """Seconds to copy one block to the host or back: the best of a few copies of several blocks."""
    copier = BlockCopier(cache)
    blocks = tuple(range(min(32, cache.shape.num_blocks)))
    times: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        copier.to_device(copier.to_host(blocks).wait(), blocks)
        if cache.keys.is_cuda:
            torch.cuda.synchronize(cache.keys.device)
        times.append(time.perf_counter() - started)
    return min(times) / (2 * len(blocks))


def _is_out_of_memory(error: Exception) -> bool:
    """torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def _memory_total_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def cpu_name() -> str:
    """The processor's name as its system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
