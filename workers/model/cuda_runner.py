"""`Runner` on a GPU: one rank's weights, its pool's memory and its rows' lasting state, all of it on the device.

Built by `engine_builder.py`, on rank 0 and on every follower alike. Loads the model, runs the largest step to see what
memory it takes, gives the pool what is left and captures graphs; from then on `cuda/step_executor.py` runs the plans.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from kernels.gpu.fp8_types import fp8_dtype_of
from kernels.gpu.kernel_table import select_gpu_kernels
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.cuda.device import Device, DeviceMemory
from workers.model.cuda.device_sampler import DeviceSampler
from workers.model.cuda.graph_sizes import graph_keys
from workers.model.cuda.loading import SelectKernels, allocate_pool, load_model
from workers.model.cuda.memory_budget import MemoryBudget
from workers.model.cuda.step_executor import DeviceStep, StepExecutor
from workers.model.devices import choose_gpu_dtype, require_paired_dims
from workers.model.model_description import (
    ModelDescription,
    blocks_for,
    describe_model,
    pool_facts,
    useful_blocks,
)
from workers.model.row_states import RowStates
from workers.model.runner_config import RunnerConfig
from workers.model.step_batch import BlockTables
from workers.model.weights.fused_tensors import Progress
from workers.runner import RunnerFacts
from workers.step_plan import Chunk, RowStart, SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

log = logging.getLogger(__name__)

_MOST_BLOCKS = 1 << 18  # more would cost the scheduler more than their prefixes bring
_IN_FLIGHT = 2
_DRAW_GRAPHS = 1  # of a size: three kinds of draw launch less together than a decoder


class CudaRunner:
    """Owns the group's connections from here on. `launch` is for one thread at a time."""

    def __init__(
        self,
        config: RunnerConfig,
        group: TensorParallelGroup,
        device: Device,
        on_progress: Progress | None = None,
        select_kernels: SelectKernels = select_gpu_kernels,
    ) -> None:
        """Raises UnsupportedModel, ModelNotFound, and InvalidRequest where the memory is too small."""
        self._group = group
        self._device = device
        with device.active(), torch.inference_mode(), _lack_of_memory_is_refused():
            before = device.memory()
            fp8_dtype = fp8_dtype_of(device.torch_device)
            model = describe_model(config, group, choose_gpu_dtype, fp8_dtype)
            require_paired_dims(model.spec)
            self._executor = self._load(config, model, select_kernels, on_progress)
            keys = () if config.enforce_eager else graph_keys(model.length)
            budget = self._measure(config, model, before, keys)
            self._facts = self._divide(config, model, budget)
            self._pool = self._allocate(config, model, self._facts.num_blocks)
            free_bytes = device.memory().free_bytes
            if keys:
                self._executor.capture(graph_keys(self._facts.max_model_len), self._pool)
            log.info(self._describe(budget, model, free_bytes))

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    def launch(self, plan: StepPlan) -> DeviceStep | SampledTokens:
        with self._device.active(), torch.inference_mode():
            return self._executor.run(plan, self._pool)

    def close(self) -> None:
        """Ends a step that waits for another rank, too: it is waited for last, and NCCL goes only behind its graphs.

        What lies on a GPU in error stays for as long as the runner does: torch ends a process that gives it back.
        """
        try:
            self._device.mark()
        except RuntimeError:
            log.exception("this process keeps what it has of a GPU that is in error")
            return
        self._device.drop_graphs()
        self._group.close()
        self._device.mark().wait()
        self._pool.clear()
        del self._executor  # and with it the weights

    def _load(
        self,
        config: RunnerConfig,
        model: ModelDescription,
        select_kernels: SelectKernels,
        on_progress: Progress | None,
    ) -> StepExecutor:
        device, group, num_rows = self._device, self._group, config.max_num_seqs
        loaded = load_model(config, model, device, group, select_kernels, on_progress)
        is_first, spec = group.rank == 0, model.spec
        sampler = DeviceSampler(
            spec.vocab_size, model.eos_token_ids, num_rows, device.torch_device, draws=is_first
        )
        tables = BlockTables(num_rows, blocks_for(model.length, config.block_size))
        rows = RowStates(tables, sampler, draws=is_first)
        max_tokens = max(config.max_num_batched_tokens, num_rows)
        return StepExecutor(device, loaded, group, rows, config.block_size, max_tokens)

    def _measure(
        self, config: RunnerConfig, model: ModelDescription, before: DeviceMemory, keys: Sequence[int]
    ) -> MemoryBudget:
        """Runs the largest steps over a pool of one block, to which nobody ever looks. And some others first, so that
        no kernel is left to be compiled in traffic."""
        pool, executor = self._allocate(config, model, 1), self._executor
        for plan in _deep_plans(model):
            executor.run_and_forget(plan, pool)
        plan = _largest_plan(config, model)
        step_bytes = self._device.peak_bytes(lambda: executor.run_and_forget(plan, pool))
        graph_bytes = 0
        if keys:
            graph_bytes = self._device.peak_bytes(lambda: executor.run_largest_graph(keys[-1], pool))
        pool.clear()
        return MemoryBudget.of(
            config.gpu_memory_utilization,
            before,
            self._device.memory(),
            step_bytes,
            graph_bytes,
            len(executor.sizes) * (len(keys) + _DRAW_GRAPHS) if keys else 0,
        )

    def _divide(self, config: RunnerConfig, model: ModelDescription, budget: MemoryBudget) -> RunnerFacts:
        pool_bytes = budget.pool_bytes(config.kv_cache_memory_bytes)
        most = max(useful_blocks(config, model), _MOST_BLOCKS)
        asked = config.kv_cache_memory_bytes is not None
        remedy = "raise " + ("kv_cache_memory_bytes" if asked else "gpu_memory_utilization")
        facts = pool_facts(config, model, self._group, pool_bytes, most, remedy)
        return replace(facts, max_in_flight=_IN_FLIGHT)

    def _describe(self, budget: MemoryBudget, model: ModelDescription, free_bytes: int) -> str:
        """`free_bytes`: before graphs were captured."""
        left_bytes = self._device.memory().free_bytes
        return budget.describe(
            self._facts,
            str(model.kv_dtype).removeprefix("torch."),
            model.block_bytes(self._facts.block_size),
            graphs_bytes=free_bytes - left_bytes,
            free_bytes=left_bytes,
        )

    def _allocate(self, config: RunnerConfig, model: ModelDescription, num_blocks: int) -> list[Tensor]:
        return allocate_pool(model, num_blocks, config.block_size, self._device.torch_device)


@contextmanager
def _lack_of_memory_is_refused() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidRequest(
            "the GPU's memory does not hold the model's weights and what one step computes: divide the model among more"
            f" GPUs by tensor_parallel_size, or lower max_num_batched_tokens or max_num_seqs ({error})",
            param="tensor_parallel_size",
        ) from error


def _largest_plan(config: RunnerConfig, model: ModelDescription) -> StepPlan:
    """As many tokens and draws as a step may have, each draw of the kind that takes most memory. All tokens go to the
    null block, which is entered in a table and copied."""
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    num_tokens = min(config.max_num_batched_tokens // num_rows, model.length)
    tokens, sampling = pack_tokens([0] * num_tokens), SamplingParams(top_p=0.9, logprobs=1)
    starts = tuple(RowStart(row, tokens, b"", sampling, seed=row) for row in range(num_rows))
    chunks = tuple(Chunk(row, 0, tokens, sample=True) for row in range(num_rows))
    return StepPlan(0, starts=starts, copies=((0, 0),), grown=((0, (0,)),), chunks=chunks)


def _deep_plans(model: ModelDescription) -> Iterator[StepPlan]:
    """One row, at the end of the longest context: it prefills two tokens, or decodes, with each plain kind of draw."""
    last = model.length - 1
    for sampling in (SamplingParams(temperature=0.0), SamplingParams(top_p=0.9)):
        starts = (RowStart(0, b"", b"", sampling, seed=0),)
        chunks = (Chunk(0, last - 1, pack_tokens([0, 0]), sample=True),)
        yield StepPlan(0, starts=starts, chunks=chunks)
        yield StepPlan(0, starts=starts, decode_rows=pack_tokens([0]), decode_starts=pack_tokens([last]))
