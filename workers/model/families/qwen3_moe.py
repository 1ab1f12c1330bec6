"""Qwen 3 with experts, in all layers or only in some."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama, qwen3
from workers.model.families.activations import activation
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ExpertsSpec, LayerSpec, ModelSpec, WeightNames


def spec(config: HfConfig) -> ModelSpec:
    base = qwen3.with_head_norm(llama.spec(config, max_positions=32768))
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window") else None
    dense = config.integers("mlp_only_layers")
    step = config.integer("decoder_sparse_step", 1)
    experts = ExpertsSpec(
        num_experts=config.integer("num_experts", config.optional_integer("num_local_experts")),
        num_chosen=config.integer("num_experts_per_tok", 8),
        features=config.integer("moe_intermediate_size", 768),
        activation=activation(config, "hidden_act", "silu"),
        normalized=config.flag("norm_topk_prob"),
    )

    def layer(index: int, base_layer: LayerSpec) -> LayerSpec:
        is_dense = index in dense or (index + 1) % step
        return replace(base_layer, mlp=base_layer.mlp if is_dense else experts, window=window)

    return replace(base, layers=tuple(layer(index, each) for index, each in enumerate(base.layers)))


def names(config: HfConfig) -> WeightNames:
    experts = "layers.{}.mlp.experts.{}"
    return replace(
        qwen3.names(config),
        router="layers.{}.mlp.gate",
        expert_gate_up=(f"{experts}.gate_proj", f"{experts}.up_proj"),
        expert_down=f"{experts}.down_proj",
    )
