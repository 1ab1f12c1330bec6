"""Qwen 3: Llama with a norm over each query's and key's head."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama, qwen2
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec, WeightNames


def spec(config: HfConfig) -> ModelSpec:
    return with_head_norm(qwen2.windowed(config, llama.spec(config, head_dim=128, max_positions=32768)))


def with_head_norm(base: ModelSpec) -> ModelSpec:
    return replace(base, attention=replace(base.attention, head_norm=base.norm))


def names(config: HfConfig) -> WeightNames:
    return replace(
        llama.names(config), q_norm="layers.{}.self_attn.q_norm", k_norm="layers.{}.self_attn.k_norm"
    )
