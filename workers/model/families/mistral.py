"""Mistral: Llama, with a sliding window over every layer in the first version."""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec

_DEFAULT_WINDOW = 4096


def spec(config: HfConfig) -> ModelSpec:
    base = llama.spec(config, max_positions=131072)
    window = config.optional_integer("sliding_window")
    if "sliding_window" not in config.values:  # an explicit null means that there is none
        window = _DEFAULT_WINDOW
    layers = tuple(replace(layer, window=window) for layer in base.layers)
    return replace(base, layers=layers, num_kv_heads=config.integer("num_key_value_heads", 8))


names = llama.names
