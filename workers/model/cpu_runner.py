"""`Runner` on a CPU: one rank's weights, its pool's memory and its rows' lasting state.

Built by `engine_builder.py`, on rank 0 and on every follower alike: all ranks execute the same plans, and only rank 0
draws tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import kv_shape, select_kernels
from protocol.errors import InvalidRequest
from workers.model.checkpoint import open_checkpoint
from workers.model.cpu_facts import choose_dtype, default_pool_bytes
from workers.model.decoder import Decoder
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config, read_eos_token_ids
from workers.model.model_spec import ModelSpec
from workers.model.rotary import rotary_table
from workers.model.runner_config import RunnerConfig
from workers.model.sampler import Sampler
from workers.model.step_batch import BlockTables, build_batch
from workers.model.weight_layout import check_divides, decoder_layout
from workers.model.weights import load_weights
from workers.runner import RunnerFacts
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

__all__ = ["CpuRunner", "RunnerConfig"]

_NOTHING = SampledTokens((), ())


class CpuRunner:
    """Owns the group's connections from here on. `execute` is for one thread at a time."""

    def __init__(
        self,
        config: RunnerConfig,
        group: TensorParallelGroup,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        hf_config = read_config(config.directory)
        family = find_family(hf_config)
        spec = family.spec(hf_config)
        check_divides(spec, group.size)
        dtype = choose_dtype(config.dtype, spec)
        self._group = group
        token_elements = 2 * spec.num_kv_heads // group.size * spec.head_dim
        self._kernels = select_kernels(dtype, config.block_size, token_elements)
        self._facts = _facts(config, spec, dtype, group, read_eos_token_ids(config.directory, hf_config))
        with torch.inference_mode():
            weights = load_weights(
                open_checkpoint(config.directory, config.load_format, config.seed),
                decoder_layout(spec, family.names),
                group.shard,
                dtype,
                self._kernels.pack_linear,
                on_progress,
            )
            rotary = rotary_table(spec.rotary, spec.head_dim, self._facts.max_model_len, dtype)
            self._pool = _allocate(spec, self._facts, dtype, group)
        self._decoder = Decoder(spec, weights, rotary, self._kernels, group)
        self._tables = BlockTables(
            config.max_num_seqs, _blocks_for(self._facts.max_model_len, config.block_size)
        )
        self._sampler = Sampler(spec.vocab_size, self._facts.eos_token_ids)

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> SampledTokens:
        self._apply_changes(plan)
        if not plan.rows:
            return _NOTHING
        batch = build_batch(plan.rows, self._tables, self._kernels.attention, self._facts.block_size)
        logits = self._decoder.forward(batch, self._pool)
        if logits is None:
            return _NOTHING
        drawing = [row for row in plan.rows if row.sample]
        positions = [row.start + len(row.token_ids) for row in drawing]
        return self._sampler.sample(logits, [row.row for row in drawing], positions)

    def close(self) -> None:
        self._group.close()
        self._pool.clear()

    def _apply_changes(self, plan: StepPlan) -> None:
        for row in plan.ends:
            self._sampler.end(row)
            self._tables.clear(row)
        for start in plan.starts:
            self._tables.clear(start.row)
            if self._group.rank == 0:
                self._sampler.start(start)
        if plan.copies:
            sources, destinations = torch.tensor(plan.copies).unbind(1)
            for kv in self._pool:
                self._kernels.copy_blocks(kv, sources, destinations)
        for step in plan.rows:
            if step.new_blocks:
                self._tables.append(step.row, step.new_blocks)


def _facts(
    config: RunnerConfig,
    spec: ModelSpec,
    dtype: torch.dtype,
    group: TensorParallelGroup,
    eos_token_ids: tuple[int, ...],
) -> RunnerFacts:
    """Equal on all ranks: the one with the least memory decides."""
    asked, block_size = config.max_model_len, config.block_size
    if asked is not None and asked > spec.max_positions:
        raise InvalidRequest(
            f"max_model_len {asked} is over the model's {spec.max_positions} positions", param="max_model_len"
        )
    length = asked or spec.max_positions
    block_bytes = _block_bytes(config, spec, dtype, group)
    pool_bytes = (
        default_pool_bytes() if config.kv_cache_memory_bytes is None else config.kv_cache_memory_bytes
    )
    useful = config.max_num_seqs * _blocks_for(length, block_size) + 1  # and the null block
    num_blocks = group.minimum(min(pool_bytes // block_bytes, useful))
    possible = max(num_blocks - 1, 0) * block_size
    if possible < length and (asked is not None or possible == 0):
        raise InvalidRequest(
            f"one sequence of {length} tokens needs {(_blocks_for(length, block_size) + 1) * block_bytes} bytes of KV"
            f" memory, and {num_blocks * block_bytes} are there: lower max_model_len or raise kv_cache_memory_bytes",
            param="max_model_len",
        )
    return RunnerFacts(num_blocks, block_size, min(length, possible), spec.vocab_size, eos_token_ids)


def _block_bytes(
    config: RunnerConfig, spec: ModelSpec, dtype: torch.dtype, group: TensorParallelGroup
) -> int:
    """Of one block on this rank, over all layers."""
    kv_heads = spec.num_kv_heads // group.size
    return 2 * spec.num_layers * config.block_size * kv_heads * spec.head_dim * dtype.itemsize


def _allocate(
    spec: ModelSpec, facts: RunnerFacts, dtype: torch.dtype, group: TensorParallelGroup
) -> list[Tensor]:
    """One tensor a layer, of zeros, which are finite where a mask hides them.

    numpy takes them from the system as they are, so a block costs no memory until it is written; torch would write
    every one of them, half a second a GiB.
    """
    shape = kv_shape(facts.num_blocks, facts.block_size, spec.num_kv_heads // group.size, spec.head_dim)
    num_bytes = math.prod(shape) * dtype.itemsize
    flat = [torch.from_numpy(np.zeros(num_bytes, np.uint8)) for _ in range(spec.num_layers)]
    return [each.view(dtype).view(shape) for each in flat]


def _blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)
