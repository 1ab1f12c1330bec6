"""GPT-NeoX and Pythia: parts of a head turn, and attention and MLP run beside each other."""

from __future__ import annotations

from workers.model.families.activations import activation
from workers.model.families.heads import head_size
from workers.model.families.positions import context, rotary
from workers.model.hf_config import HfConfig
from workers.model.model_spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormKind,
    NormSpec,
    QkvOrder,
    ResidualOrder,
    WeightNames,
)


def spec(config: HfConfig) -> ModelSpec:
    hidden_size, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim, bias = head_size(config, hidden_size, num_heads), config.flag("attention_bias", True)
    positions = rotary(
        config,
        head_dim,
        share=config.number("rotary_pct", 0.25),
        theta=config.number("rotary_emb_base", 10000.0),
    )
    longest, usual = context(positions, config.integer("max_position_embeddings", 2048))
    parallel = config.flag("use_parallel_residual", True)
    mlp = MlpSpec(
        features=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "gelu"),
        gated=False,
        bias=True,
    )
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_positions=longest,
        norm=NormSpec(config.number("layer_norm_eps", 1e-5), NormKind.LAYER, bias=True),
        layers=(LayerSpec(mlp, positions),) * config.integer("num_hidden_layers"),
        attention=AttentionSpec(bias=bias, output_bias=bias),
        order=ResidualOrder.PARALLEL if parallel else ResidualOrder.NORM_BEFORE,
        tied_embeddings=config.flag("tie_word_embeddings"),
        default_positions=usual,
    )


def names(config: HfConfig) -> WeightNames:
    return WeightNames(
        embedding="embed_in",
        attention_norm="layers.{}.input_layernorm",
        qkv=("layers.{}.attention.query_key_value",),
        qkv_order=QkvOrder.PER_KV_HEAD,
        o="layers.{}.attention.dense",
        mlp_norm="layers.{}.post_attention_layernorm",
        gate_up=("layers.{}.mlp.dense_h_to_4h",),
        down="layers.{}.mlp.dense_4h_to_h",
        final_norm="final_layer_norm",
        lm_head="embed_out",
        prefix="gpt_neox.",
        ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
    )
