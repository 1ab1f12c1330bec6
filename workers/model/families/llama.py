"""Llama 1, 2 and 3, and whatever else calls itself `LlamaForCausalLM`."""

from __future__ import annotations

from workers.model.hf_config import HfConfig
from workers.model.model_spec import LinearScaling, Llama3Scaling, ModelSpec, RotarySpec, WeightNames

NAMES = WeightNames(
    embedding="model.embed_tokens",
    attention_norm="model.layers.{}.input_layernorm",
    q="model.layers.{}.self_attn.q_proj",
    k="model.layers.{}.self_attn.k_proj",
    v="model.layers.{}.self_attn.v_proj",
    o="model.layers.{}.self_attn.o_proj",
    mlp_norm="model.layers.{}.post_attention_layernorm",
    gate="model.layers.{}.mlp.gate_proj",
    up="model.layers.{}.mlp.up_proj",
    down="model.layers.{}.mlp.down_proj",
    final_norm="model.norm",
    lm_head="lm_head",
    ignored=(".rotary_emb.inv_freq",),
)


def spec(config: HfConfig) -> ModelSpec:
    config.require("hidden_act", "silu", default="silu")
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads),
        head_dim=config.integer("head_dim", hidden_size // num_heads),
        intermediate_size=config.integer("intermediate_size"),
        max_positions=config.integer("max_position_embeddings", 2048),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rotary=rotary(config),
        attention_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
        tied_embeddings=config.flag("tie_word_embeddings"),
    )


def rotary(config: HfConfig) -> RotarySpec:
    """`rope_parameters` is transformers 5's name; before, it was `rope_theta` beside `rope_scaling`."""
    rope = config.section("rope_parameters") or config.section("rope_scaling")
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind == "default":
        return RotarySpec(theta)
    if kind == "linear":
        return RotarySpec(theta, LinearScaling(rope.number("factor")))
    if kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_positions=rope.integer("original_max_position_embeddings"),
        )
        return RotarySpec(theta, scaling)
    raise config.unsupported(f"its rotary scaling {kind!r} is not one of default, linear, llama3")
