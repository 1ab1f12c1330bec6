"""`Runner` on a CPU: one rank's weights, its pool's memory and its rows' lasting state.

Built by `engine_builder.py`, on rank 0 and on every follower alike: all ranks execute the same plans, and only rank 0
draws tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from kernels.dispatch import kv_shape, select_kernels
from protocol.errors import InvalidRequest
from protocol.messages import TokenLogprob
from workers.model.attention_variants import distinct, layer_variants
from workers.model.checkpoint import open_checkpoint
from workers.model.cpu_facts import choose_dtype, default_pool_bytes
from workers.model.decoder import Decoder
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config, read_eos_token_ids
from workers.model.model_spec import ModelSpec
from workers.model.prompt_scores import PromptScores, ScoredChunk
from workers.model.rotary import RotaryTables
from workers.model.runner_config import RunnerConfig
from workers.model.sampler import Drawn, Sampler
from workers.model.step_batch import BlockTables, RowLayout, build_batch, lay_out
from workers.model.weight_layout import check_divides, decoder_layout
from workers.model.weights import load_weights
from workers.runner import RunnerFacts
from workers.step_plan import SampledTokens, StepPlan
from workers.tensor_parallel import TensorParallelGroup

__all__ = ["CpuRunner", "RunnerConfig"]

log = logging.getLogger(__name__)

_NOTHING = SampledTokens()
_MAX_SCORED_TOKENS = 256  # whose logits exist at a time


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
        self._facts = _facts(config, spec, dtype, group, read_eos_token_ids(config.directory, hf_config))
        num_positions = self._facts.max_model_len
        variants = layer_variants(spec, group.shard, num_positions)
        token_elements = 2 * spec.kv_heads_per_rank(group.size) * spec.head_dim
        self._kernels = select_kernels(
            dtype, config.block_size, token_elements, distinct(variants), config.deterministic
        )
        with torch.inference_mode():
            weights = load_weights(
                open_checkpoint(config.directory, config.load_format, config.seed),
                decoder_layout(spec, family.names(hf_config)),
                group.shard,
                dtype,
                self._kernels.pack_linear,
                on_progress,
            )
            rotary = RotaryTables(spec.rotaries, spec.head_dim, num_positions, dtype)
            self._pool = _allocate(spec, self._facts, dtype, group)
        self._decoder = Decoder(spec, weights, variants, rotary, self._kernels, group)
        self._tables = BlockTables(
            config.max_num_seqs, _blocks_for(self._facts.max_model_len, config.block_size)
        )
        self._sampler = Sampler(spec.vocab_size, self._facts.eos_token_ids, config.max_num_seqs)
        self._scores = PromptScores()
        self._last_tokens = np.zeros(config.max_num_seqs, np.int64)  # of each row, the one drawn last

    @property
    def facts(self) -> RunnerFacts:
        return self._facts

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> SampledTokens:
        """Runs the step before it returns: a CPU has no stream to leave it to."""
        self._apply_changes(plan)
        layout = lay_out(plan)
        scored = self._scores.chunks(plan, layout)
        wanted = np.concatenate([layout.last_places, *(chunk.places for chunk in scored)])
        batch = build_batch(
            plan,
            layout,
            wanted,
            self._last_tokens,
            self._tables,
            self._kernels.attentions,
            self._facts.block_size,
        )
        hidden = self._decoder.forward(batch, self._pool)
        if hidden is None:
            return _NOTHING
        drawn = self._draw(hidden[: plan.num_drawn], layout)
        return replace(drawn, prompt_logprobs=self._score(hidden[plan.num_drawn :], scored))

    def _draw(self, hidden: Tensor, layout: RowLayout) -> SampledTokens:
        """One token for each row of `hidden` [samples, hidden]; all ranks know them, for the next step to feed."""
        if not len(hidden):
            return _NOTHING
        logits = self._decoder.logits(hidden)
        if logits is None:
            drawn = Drawn(torch.empty(len(hidden), dtype=torch.int64))
        else:
            rows, positions = torch.from_numpy(layout.drawn_rows), torch.from_numpy(layout.drawn_positions)
            drawn = self._sampler.sample(logits, rows, positions)
        self._last_tokens[layout.drawn_rows] = self._group.broadcast(drawn.token_ids).numpy()
        return SampledTokens(drawn.token_ids.tolist(), drawn.logprobs) if self._group.rank == 0 else _NOTHING

    def _score(self, hidden: Tensor, scored: list[ScoredChunk]) -> dict[int, tuple[TokenLogprob, ...]]:
        """Slice by slice, because a chunk's logits are larger than everything else in a step."""
        found: dict[int, tuple[TokenLogprob, ...]] = {}
        for chunk in scored:
            own, hidden = hidden[: len(chunk.places)], hidden[len(chunk.places) :]
            parts = []
            for part, next_tokens in zip(
                torch.split(own, _MAX_SCORED_TOKENS),
                torch.split(chunk.next_tokens, _MAX_SCORED_TOKENS),
                strict=True,
            ):
                logits = self._decoder.logits(part)
                if logits is not None:
                    parts.append(self._sampler.score(logits, next_tokens, chunk.num_alternatives))
            found[chunk.index] = tuple(chain.from_iterable(parts))
        return found

    def close(self) -> None:
        self._group.close()
        self._pool.clear()

    def _apply_changes(self, plan: StepPlan) -> None:
        for row in plan.ends:
            self._sampler.end(row)
            self._scores.end(row)
            self._tables.clear(row)
        for start in plan.starts:
            self._tables.clear(start.row)
            self._scores.start(start)
            if self._group.rank == 0:
                self._sampler.start(start)
        if plan.copies:
            sources, destinations = torch.tensor(plan.copies).unbind(1)
            for kv in self._pool:
                self._kernels.copy_blocks(kv, sources, destinations)
        for row, new_blocks in plan.grown:
            self._tables.append(row, new_blocks)


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
    length = asked or spec.default_positions or spec.max_positions
    if asked is None and length < spec.max_positions and group.rank == 0:
        log.warning(
            "the context is %d tokens; max_model_len may ask for up to %d, which this model's rotary scaling reaches by"
            " reading short texts otherwise",
            length,
            spec.max_positions,
        )
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
    kv_heads = spec.kv_heads_per_rank(group.size)
    return 2 * spec.num_layers * config.block_size * kv_heads * spec.head_dim * dtype.itemsize


def _allocate(
    spec: ModelSpec, facts: RunnerFacts, dtype: torch.dtype, group: TensorParallelGroup
) -> list[Tensor]:
    """One tensor a layer, of zeros, which are finite where a mask hides them.

    numpy takes them from the system as they are, so a block costs no memory until it is written; torch would write
    every one of them, half a second a GiB.
    """
    shape = kv_shape(facts.num_blocks, facts.block_size, spec.kv_heads_per_rank(group.size), spec.head_dim)
    num_bytes = math.prod(shape) * dtype.itemsize
    flat = [torch.from_numpy(np.zeros(num_bytes, np.uint8)) for _ in range(spec.num_layers)]
    return [each.view(dtype).view(shape) for each in flat]


def _blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)
