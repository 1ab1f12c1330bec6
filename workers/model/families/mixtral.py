"""Mixtral: Mistral with experts in every layer."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama
from workers.model.families.activations import activation
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ExpertsSpec, ModelSpec, WeightNames


def spec(config: HfConfig) -> ModelSpec:
    base = llama.spec(config, max_positions=131072, theta=1e6, eps=1e-5)
    experts = ExpertsSpec(
        num_experts=config.integer("num_local_experts", 8),
        num_chosen=config.integer("num_experts_per_tok", 2),
        features=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "silu"),
        normalized=True,
    )
    window = config.optional_integer("sliding_window")
    layers = tuple(replace(layer, mlp=experts, window=window) for layer in base.layers)
    return replace(base, layers=layers, num_kv_heads=config.integer("num_key_value_heads", 8))


def names(config: HfConfig) -> WeightNames:
    experts = "layers.{}.block_sparse_moe.experts.{}"
    return replace(
        llama.names(config),
        gate_up=(),
        down=None,
        router="layers.{}.block_sparse_moe.gate",
        expert_gate_up=(f"{experts}.w1", f"{experts}.w3"),
        expert_down=f"{experts}.w2",
    )
