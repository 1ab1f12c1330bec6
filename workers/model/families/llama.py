"""Llama 1, 2 and 3, and whatever else calls itself `LlamaForCausalLM`. Its relatives start from what stands here."""

from __future__ import annotations

from workers.model.families.activations import activation
from workers.model.families.positions import context, rotary
from workers.model.hf_config import HfConfig
from workers.model.model_spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, WeightNames


def spec(
    config: HfConfig,
    *,
    head_dim: int | None = None,
    max_positions: int = 2048,
    theta: float = 10000.0,
    eps: float = 1e-6,
) -> ModelSpec:
    """The rest of the arguments is what holds where the config says nothing; relatives have their own."""
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", head_dim or hidden_size // num_heads)
    bias = config.flag("attention_bias")
    positions = rotary(config, head_dim, theta=theta, max_positions=max_positions)
    longest, usual = context(positions, config.integer("max_position_embeddings", max_positions))
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=config.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        max_positions=longest,
        norm=NormSpec(config.number("rms_norm_eps", eps)),
        layers=(LayerSpec(mlp(config), positions),) * config.integer("num_hidden_layers"),
        attention=AttentionSpec(bias=bias, output_bias=bias),
        tied_embeddings=config.flag("tie_word_embeddings"),
        default_positions=usual,
    )


def mlp(config: HfConfig) -> MlpSpec:
    return MlpSpec(
        features=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "silu"),
        gated=True,
        bias=config.flag("mlp_bias"),
    )


def names(config: HfConfig) -> WeightNames:
    return WeightNames(
        embedding="embed_tokens",
        attention_norm="layers.{}.input_layernorm",
        qkv=(
            "layers.{}.self_attn.q_proj",
            "layers.{}.self_attn.k_proj",
            "layers.{}.self_attn.v_proj",
        ),
        o="layers.{}.self_attn.o_proj",
        mlp_norm="layers.{}.post_attention_layernorm",
        gate_up=("layers.{}.mlp.gate_proj", "layers.{}.mlp.up_proj"),
        down="layers.{}.mlp.down_proj",
        final_norm="norm",
        lm_head="lm_head",
        prefix="model.",
        ignored=(".rotary_emb.inv_freq",),
    )
