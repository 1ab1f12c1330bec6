"""`Runner` on a CPU: one rank's weights, its pool's memory and its rows' lasting state.

Built by `engine_builder.py`, on rank 0 and on every follower alike: all ranks execute the same plans, and only rank 0
draws tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import kv_shape, select_kernels
from workers.model.cpu_facts import choose_dtype, default_pool_bytes
from workers.model.layers.attention_variants import distinct, layer_variants
from workers.model.layers.decoder import Decoder
from workers.model.layers.rotary import RotaryTables
from workers.model.model_description import (
    ModelDescription,
    blocks_for,
    describe_model,
    pool_facts,
    useful_blocks,
)
from workers.model.row_states import RowStates
from workers.model.runner_config import RunnerConfig
from workers.model.sampling.prompt_scores import score_chunks
from workers.model.sampling.sampler import Drawn, Sampler
from workers.model.step_batch import BlockTables, RowLayout, build_batch, lay_out
from workers.model.weights.checkpoint import open_checkpoint
from workers.model.weights.fused_tensors import Progress
from workers.model.weights.load_weights import load_weights
from workers.runner import RunnerFacts
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

_NOTHING = SampledTokens()


class CpuRunner:
    """Owns the group's connections from here on. `execute` is for one thread at a time."""

    def __init__(
        self,
        config: RunnerConfig,
        group: TensorParallelGroup,
        on_progress: Progress | None = None,
    ) -> None:
        model = describe_model(config, group, choose_dtype, torch.float8_e4m3fn)
        spec, dtype = model.spec, model.dtype
        self._group = group
        self._facts = _facts(config, model, group)
        num_positions = self._facts.max_model_len
        variants = layer_variants(spec, group.shard, num_positions)
        token_elements = 2 * model.kv_heads * spec.head_dim
        self._kernels = select_kernels(
            dtype,
            config.block_size,
            token_elements,
            distinct(variants),
            config.deterministic,
            model.fp8_kv,
            model.fp8_weights is not None,
        )
        with torch.inference_mode():
            weights = load_weights(
                open_checkpoint(config.directory, config.load_format, config.seed),
                model.layout,
                group.shard,
                dtype,
                self._kernels,
                on_progress,
                fp8=model.fp8_use,
            )
            rotary = RotaryTables(spec.rotaries, spec.head_dim, num_positions, dtype)
            self._pool = _allocate(model, self._facts)
        self._decoder = Decoder(spec, weights, variants, rotary, self._kernels, group)
        self._rows = RowStates(
            BlockTables(config.max_num_seqs, blocks_for(num_positions, config.block_size)),
            Sampler(spec.vocab_size, self._facts.eos_token_ids, config.max_num_seqs),
            draws=group.rank == 0,
        )
        self._last_tokens = np.zeros(config.max_num_seqs, np.int64)  # of each row, the one drawn last

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> SampledTokens:
        """Runs the step before it returns: a CPU has no stream to leave it to."""
        self._rows.apply(plan)
        self._copy_blocks(plan)
        layout = lay_out(plan)
        scored = self._rows.scores.chunks(plan, layout)
        wanted = np.concatenate([layout.last_places, *(chunk.places for chunk in scored)])
        batch = build_batch(
            plan,
            layout,
            wanted,
            self._last_tokens,
            self._rows.tables,
            self._kernels.attentions,
            self._facts.block_size,
        )
        hidden = self._decoder.forward(batch, self._pool)
        if hidden is None:
            return _NOTHING
        drawn = self._draw(hidden[: plan.num_drawn], layout)
        scores = score_chunks(hidden[plan.num_drawn :], scored, self._decoder.logits, self._rows.sampler)
        return replace(drawn, prompt_logprobs=scores)

    def _draw(self, hidden: Tensor, layout: RowLayout) -> SampledTokens:
        """One token for each row of `hidden` [samples, hidden]; all ranks know them, for the next step to feed."""
        if not len(hidden):
            return _NOTHING
        logits = self._decoder.logits(hidden)
        if logits is None:
            drawn = Drawn(torch.empty(len(hidden), dtype=torch.int64))
        else:
            positions = torch.from_numpy(layout.drawn_positions)
            drawn = self._rows.sampler.sample(logits, layout.drawn_rows, positions)
        self._last_tokens[layout.drawn_rows] = self._group.broadcast(drawn.token_ids).numpy()
        return SampledTokens(drawn.token_ids.tolist(), drawn.logprobs) if self._group.rank == 0 else _NOTHING

    def _copy_blocks(self, plan: StepPlan) -> None:
        if plan.copies:
            sources, destinations = torch.tensor(plan.copies).unbind(1)
            for kv in self._pool:
                self._kernels.copy_blocks(kv, sources, destinations)

    def close(self) -> None:
        self._group.close()
        self._pool.clear()


def _facts(config: RunnerConfig, model: ModelDescription, group: TensorParallelGroup) -> RunnerFacts:
    asked = config.kv_cache_memory_bytes
    pool_bytes = default_pool_bytes() if asked is None else asked
    most = useful_blocks(config, model)
    return pool_facts(config, model, group, pool_bytes, most, "raise kv_cache_memory_bytes")


def _allocate(model: ModelDescription, facts: RunnerFacts) -> list[Tensor]:
    """One tensor a layer, of zeros, which are finite where a mask hides them.

    numpy takes them from the system as they are, so a block costs no memory until it is written; torch would write
    every one of them, half a second a GiB.
    """
    shape = kv_shape(facts.num_blocks, facts.block_size, model.kv_heads, model.spec.head_dim)
    num_bytes = math.prod(shape) * model.kv_dtype.itemsize
    flat = [torch.from_numpy(np.zeros(num_bytes, np.uint8)) for _ in range(model.spec.num_layers)]
    return [each.view(model.kv_dtype).view(shape) for each in flat]
