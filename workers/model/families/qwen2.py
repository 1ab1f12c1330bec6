"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and sliding windows on upper layers where asked."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama
from workers.model.families.windows import layer_kinds, with_window
from workers.model.hf_config import HfConfig
from workers.model.model_spec import AttentionSpec, ModelSpec


def spec(config: HfConfig) -> ModelSpec:
    base = llama.spec(config, max_positions=32768)
    return replace(windowed(config, base), attention=AttentionSpec(bias=True))


def windowed(config: HfConfig, base: ModelSpec) -> ModelSpec:
    if not config.flag("use_sliding_window"):
        return base
    first = config.integer("max_window_layers", 28)
    kinds = layer_kinds(config, base.num_layers, lambda index: index >= first)
    layers = (with_window(layer, kind, config) for layer, kind in zip(base.layers, kinds, strict=True))
    return replace(base, layers=tuple(layers))


names = llama.names
