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

from kernels.gpu.kernel_table import select_gpu_kernels
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams
from protocol.tokens import pack_tokens
from workers.model.cuda.device import Device, DeviceMemory
from workers.model.cuda.graph_sizes import graph_keys
from workers.model.cuda.loading import SelectKernels, allocate_pool, can_be_captured, load_model
from workers.model.cuda.memory_budget import MemoryBudget
from workers.model.cuda.step_executor import DeviceStep, StepExecutor
from workers.model.devices import choose_gpu_dtype
from workers.model.model_description import (
    ModelDescription,
    blocks_for,
    describe_model,
    pool_facts,
    useful_blocks,
)
from workers.model.row_states import RowStates
from workers.model.runner_config import RunnerConfig
from workers.model.sampler import Sampler
from workers.model.step_batch import BlockTables
from workers.model.weights import Progress
from workers.runner import RunnerFacts
from workers.step_plan import Chunk, RowStart, SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

log = logging.getLogger(__name__)

_MOST_BLOCKS = 1 << 18  # more would cost the scheduler more than their prefixes bring
_IN_FLIGHT = 2


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
            model = describe_model(config, group, choose_gpu_dtype)
            self._executor = self._load(config, model, select_kernels, on_progress)
            keys = graph_keys(model.length) if can_be_captured(model) and not config.enforce_eager else ()
            budget = self._measure(config, model, before, keys)
            self._facts = self._divide(config, model, budget)
            self._pool = self._allocate(config, model, self._facts.num_blocks)
            free_bytes = device.memory().free_bytes
            if keys:
                self._executor.capture(graph_keys(self._facts.max_model_len), self._pool)
            after, block_bytes = device.memory(), model.block_bytes(config.block_size)
            log.info(
                budget.describe(self._facts, block_bytes, free_bytes - after.free_bytes, after.free_bytes)
            )

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    def launch(self, plan: StepPlan) -> DeviceStep | SampledTokens:
        with self._device.active(), torch.inference_mode():
            return self._executor.run(plan, self._pool)

    def close(self) -> None:
        self._device.mark().wait()
        self._group.close()
        self._pool.clear()
        del self._executor  # and with it weights and graphs

    def _load(
        self,
        config: RunnerConfig,
        model: ModelDescription,
        select_kernels: SelectKernels,
        on_progress: Progress | None,
    ) -> StepExecutor:
        device, group, num_rows = self._device, self._group, config.max_num_seqs
        loaded = load_model(config, model, device, group, select_kernels, on_progress)
        rows = RowStates(
            BlockTables(num_rows, blocks_for(model.length, config.block_size)),
            Sampler(model.spec.vocab_size, model.eos_token_ids, num_rows, device.torch_device),
            draws=group.rank == 0,
        )
        max_tokens = max(config.max_num_batched_tokens, num_rows)
        return StepExecutor(device, loaded, group, rows, config.block_size, max_tokens)

    def _measure(
        self, config: RunnerConfig, model: ModelDescription, before: DeviceMemory, keys: Sequence[int]
    ) -> MemoryBudget:
        """Runs the largest steps over a pool of one block, to which nobody ever looks."""
        pool, executor = self._allocate(config, model, 1), self._executor
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
            len(executor.sizes) * (len(keys) + 2) if keys else 0,
        )

    def _divide(self, config: RunnerConfig, model: ModelDescription, budget: MemoryBudget) -> RunnerFacts:
        pool_bytes = budget.pool_bytes(config.kv_cache_memory_bytes)
        most = max(useful_blocks(config, model), _MOST_BLOCKS)
        asked = config.kv_cache_memory_bytes is not None
        remedy = "raise " + ("kv_cache_memory_bytes" if asked else "gpu_memory_utilization")
        facts = pool_facts(config, model, self._group, pool_bytes, most, remedy)
        return replace(facts, max_in_flight=_IN_FLIGHT)

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
    """As many tokens and draws as a step may have, each draw of the kind that takes most memory. Block tables stay
    empty: all tokens go to the null block."""
    num_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    num_tokens = min(config.max_num_batched_tokens // num_rows, model.length)
    tokens, sampling = pack_tokens([0] * num_tokens), SamplingParams(top_p=0.9, logprobs=1)
    starts = tuple(RowStart(row, tokens, b"", sampling, seed=row) for row in range(num_rows))
    chunks = tuple(Chunk(row, 0, tokens, sample=True) for row in range(num_rows))
    return StepPlan(0, starts=starts, chunks=chunks)
