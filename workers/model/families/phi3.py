"""Phi-3 and the smaller Phi-4: Llama with fused weights, a window in some, and two sets of rotary factors (longrope).

transformers changes from the short factors to the long ones when a sequence grows beyond the original context, which
leaves its earlier keys as they were turned. Here the served context decides, once, so that a key means the same in
every sequence that shares it: short factors unless `max_model_len` asks for more than the original context.
"""

from __future__ import annotations

from dataclasses import replace

from workers.model.families import llama
from workers.model.hf_config import HfConfig
from workers.model.model_spec import ModelSpec, WeightNames

_ORIGINAL_POSITIONS = 4096
_OLDER_NAMES = ("su", "yarn")  # of longrope, in Phi-3's first configs


def spec(config: HfConfig) -> ModelSpec:
    for name in ("attention_bias", "mlp_bias"):
        if config.flag(name):
            raise config.unsupported(f"its {name} asks for biases that this family's checkpoints do not hold")
    base = llama.spec(modernized(config), max_positions=_ORIGINAL_POSITIONS, eps=1e-5)
    window = config.optional_integer("sliding_window")
    return replace(base, layers=tuple(replace(layer, window=window) for layer in base.layers))


def modernized(config: HfConfig) -> HfConfig:
    """With what older configs leave out or call otherwise."""
    values = {"original_max_position_embeddings": _ORIGINAL_POSITIONS, **config.values}
    scaling = config.section("rope_scaling").values
    if scaling.get("type", scaling.get("rope_type")) in _OLDER_NAMES:
        values["rope_scaling"] = {**scaling, "type": "longrope", "rope_type": "longrope"}
    return HfConfig(values, config.source)


def names(config: HfConfig) -> WeightNames:
    return replace(
        llama.names(config),
        qkv=("layers.{}.self_attn.qkv_proj",),
        gate_up=("layers.{}.mlp.gate_up_proj",),
    )
