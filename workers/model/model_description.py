"""What every runner decides before weights are loaded, and how memory for blocks becomes a pool: from the model's
directory and the configuration alone. Called by the runners; equal on all ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from protocol.errors import InvalidRequest
from workers.model.devices import require_fp8
from workers.model.families.registry import find_family
from workers.model.hf_config import read_config, read_eos_token_ids
from workers.model.model_spec import ModelSpec
from workers.model.runner_config import RunnerConfig
from workers.model.weights.fp8_format import Fp8Format, read_fp8_format
from workers.model.weights.fp8_pieces import SCALE_NAMES
from workers.model.weights.fused_tensors import Fp8Use
from workers.model.weights.layout_parts import DecoderLayout
from workers.model.weights.weight_layout import check_divides, decoder_layout
from workers.runner import RunnerFacts
from workers.tensor_parallel import TensorParallelGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelDescription:
    spec: ModelSpec
    layout: DecoderLayout
    dtype: torch.dtype
    kv_dtype: torch.dtype  # of the pool
    fp8_weights: torch.dtype | None  # of what layers multiply with, where that is quantised
    stored_fp8: Fp8Format | None  # of the checkpoint's weights, where it is quantised already
    eos_token_ids: tuple[int, ...]
    length: int  # tokens, of the context: what was asked for, or what the model serves by itself
    num_ranks: int

    @property
    def kv_heads(self) -> int:
        """Of one rank."""
        return self.spec.kv_heads_per_rank(self.num_ranks)

    @property
    def fp8_kv(self) -> bool:
        return self.kv_dtype != self.dtype

    @property
    def fp8_use(self) -> Fp8Use:
        kv_dtype = self.kv_dtype if self.fp8_kv else None
        return Fp8Use(self.stored_fp8, self.fp8_weights, kv_dtype, self.spec.num_kv_heads)

    def block_bytes(self, block_size: int) -> int:
        """Of one block on one rank, over all layers."""
        elements = 2 * self.spec.num_layers * block_size * self.kv_heads * self.spec.head_dim
        return elements * self.kv_dtype.itemsize


def describe_model(
    config: RunnerConfig,
    group: TensorParallelGroup,
    choose_dtype: Callable[[str, ModelSpec], torch.dtype],
    fp8_dtype: torch.dtype | None,  # of the device; None: it has none
) -> ModelDescription:
    """Raises UnsupportedModel, ModelNotFound, InvalidRequest."""
    hf_config = read_config(config.directory)
    family = find_family(hf_config)
    spec = family.spec(hf_config)
    check_divides(spec, group.size)
    dtype = choose_dtype(config.dtype, spec)
    layout = decoder_layout(spec, family.names(hf_config))
    stored = read_fp8_format(hf_config)
    if stored is not None:
        layout = replace(layout, ignored=(*layout.ignored, *SCALE_NAMES))
        if group.rank == 0:
            _tell_of_fp8(config, stored, fp8_dtype)
    asked = config.quantization is not None
    return ModelDescription(
        spec=spec,
        layout=layout,
        dtype=dtype,
        kv_dtype=dtype if config.kv_cache_dtype == "auto" else require_fp8(fp8_dtype, "kv_cache_dtype"),
        fp8_weights=require_fp8(fp8_dtype, "quantization") if asked else fp8_dtype if stored else None,
        stored_fp8=None if config.load_format == "dummy" else stored,
        eos_token_ids=read_eos_token_ids(config.directory, hf_config),
        length=_length(config.max_model_len, spec, group.rank),
        num_ranks=group.size,
    )


def _tell_of_fp8(config: RunnerConfig, stored: Fp8Format, fp8_dtype: torch.dtype | None) -> None:
    """Once, by rank 0."""
    if fp8_dtype is None:
        log.warning(
            "weights are stored in fp8, which this device cannot multiply: they take 16 or 32 bits here"
        )
    elif stored.fixed_inputs:
        log.info(
            "the stored scales of inputs (input_scale) are not used: each token has its own, which is closer"
        )
    if stored.block is not None and fp8_dtype is not None:
        log.info("weights are stored in blocks, and quantized again: with a scale per output channel")
    if stored.fp8_kv and config.kv_cache_dtype == "auto":
        log.info("the checkpoint has scales for keys and values in fp8: kv_cache_dtype: fp8 uses them")


def pool_facts(
    config: RunnerConfig,
    model: ModelDescription,
    group: TensorParallelGroup,
    pool_bytes: int,
    most_blocks: int,
    remedy: str,  # what gives more memory: "raise this_option"
) -> RunnerFacts:
    """Equal on all ranks: the one with the least memory decides."""
    block_size, length = config.block_size, model.length
    block_bytes = model.block_bytes(block_size)
    num_blocks = group.minimum(min(pool_bytes // block_bytes, most_blocks))
    possible = max(num_blocks - 1, 0) * block_size
    if possible < length and (config.max_model_len is not None or possible == 0):
        raise InvalidRequest(
            f"one sequence of {length} tokens needs {(blocks_for(length, block_size) + 1) * block_bytes} bytes of KV"
            f" memory, and {max(num_blocks, 0) * block_bytes} are there: lower max_model_len or {remedy}",
            param="max_model_len",
        )
    return RunnerFacts(
        num_blocks, block_size, min(length, possible), model.spec.vocab_size, model.eos_token_ids
    )


def useful_blocks(config: RunnerConfig, model: ModelDescription) -> int:
    """With as many, and the null block, every row can hold the whole context at once."""
    return config.max_num_seqs * blocks_for(model.length, config.block_size) + 1


def blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def _length(asked: int | None, spec: ModelSpec, rank: int) -> int:
    if asked is not None and asked > spec.max_positions:
        raise InvalidRequest(
            f"max_model_len {asked} is over the model's {spec.max_positions} positions", param="max_model_len"
        )
    length = asked or spec.default_positions or spec.max_positions
    if asked is None and length < spec.max_positions and rank == 0:
        log.warning(
            "the context is %d tokens; max_model_len may ask for up to %d, which this model's rotary scaling reaches by"
            " reading short texts otherwise",
            length,
            spec.max_positions,
        )
    return length
