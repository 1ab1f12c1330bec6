"""A model's decoder on a device: its weights, streamed there, its kernels, its angles. Called by `cuda_runner.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention_variant import AttentionVariant
from kernels.gpu.kernel_table import GpuKernels, GpuSizes, gpu_kv_shape
from workers.model.cuda.device import Device
from workers.model.cuda.graph_sizes import padded_rows
from workers.model.layers.attention_variants import distinct, layer_variants
from workers.model.layers.decoder import Decoder
from workers.model.layers.rotary import RotaryTables
from workers.model.model_description import ModelDescription
from workers.model.runner_config import RunnerConfig
from workers.model.weights.checkpoint import open_checkpoint
from workers.model.weights.fused_tensors import Progress
from workers.model.weights.load_weights import load_weights
from workers.tensor_parallel import TensorParallelGroup

SelectKernels = Callable[[GpuSizes, Sequence[AttentionVariant]], GpuKernels]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    described: ModelDescription
    decoder: Decoder
    kernels: GpuKernels
    attended_size: int  # of a token's attention, before its projection


def load_model(
    config: RunnerConfig,
    model: ModelDescription,
    device: Device,
    group: TensorParallelGroup,
    select_kernels: SelectKernels,
    on_progress: Progress | None,
) -> LoadedModel:
    spec, own = model.spec, device.torch_device
    variants = layer_variants(spec, group.shard, model.length)
    sizes = GpuSizes(
        device=own,
        dtype=model.dtype,
        num_processors=device.num_processors,
        max_rows=padded_rows(config.max_num_seqs),
        max_keys=model.length,
        num_heads=spec.num_heads // group.size,
        kv_heads=model.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        deterministic=config.deterministic,
        fp8_kv=model.fp8_kv,
        fp8_weights=model.fp8_weights,
    )
    kernels = select_kernels(sizes, distinct(variants))
    weights = load_weights(
        open_checkpoint(config.directory, config.load_format, config.seed, own),
        model.layout,
        group.shard,
        model.dtype,
        kernels.decoder,
        on_progress,
        own,
        model.fp8_use,
    )
    rotary = RotaryTables(spec.rotaries, spec.head_dim, model.length, model.dtype, own)
    decoder = Decoder(spec, weights, variants, rotary, kernels.decoder, group)
    return LoadedModel(model, decoder, kernels, sizes.num_heads * sizes.head_dim)


def allocate_pool(
    model: ModelDescription, num_blocks: int, block_size: int, device: torch.device
) -> list[Tensor]:
    """One tensor a layer."""
    shape = gpu_kv_shape(num_blocks, block_size, model.kv_heads, model.spec.head_dim)
    return [torch.zeros(shape, dtype=model.kv_dtype, device=device) for _ in range(model.spec.num_layers)]
